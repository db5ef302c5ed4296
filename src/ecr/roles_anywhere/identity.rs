//! The certificate and the private key in the files, checked before AWS is asked.

use super::certificate::Certificate;
use crate::report::redact::remember_private_key;
use jiff::Timestamp;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::sign::SigningKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use secrecy::zeroize::Zeroizing;
use std::fmt;
use std::sync::Arc;

/// AWS takes no more certificates between the leaf and the trust anchor.
const LONGEST_CHAIN: usize = 5;
/// The ways to sign that AWS has for certificates and that the crypto library has for these keys: SHA-256 in both.
const SCHEMES: [SignatureScheme; 2] =
    [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PKCS1_SHA256];

/// A certificate with its private key.
pub struct ClientIdentity {
    /// The certificate.
    pub leaf: Certificate,
    /// The certificates between it and the trust anchor.
    pub chain: Vec<Certificate>,
    key: Arc<dyn SigningKey>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientIdentity({})", self.leaf.subject)
    }
}

/// Why the files are no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A file is being written.
    #[error("{0} is empty or broken off: perhaps it is being written")]
    Torn(&'static str),
    /// No certificate.
    #[error("the certificate file holds no certificate in PEM form")]
    NoCertificate,
    /// Something that is no certificate.
    #[error("the certificate file holds a certificate that cannot be read")]
    BadCertificate,
    /// No private key.
    #[error("the key file holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1) that is not encrypted")]
    NoKey,
    /// A key of another kind.
    #[error(
        "the private key is not of a kind that can be used: expected ECDSA P-256, or RSA of 2048 to 4096 bits"
    )]
    KeyKind,
    /// Key and certificate are of different pairs.
    #[error(
        "the private key is not that of the certificate: either they are being rotated, or the two files do not belong together"
    )]
    Differ,
    /// The certificate is no longer valid.
    #[error("the certificate expired at {0}, or this node's clock is wrong")]
    Expired(Timestamp),
    /// The certificate is not valid yet.
    #[error("the certificate is not valid before {0}, or this node's clock is wrong")]
    NotYetValid(Timestamp),
}

impl IdentityError {
    /// Whether the files may be an identity a moment later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Torn(_) | Self::Differ | Self::Expired(_) | Self::NotYetValid(_) => true,
            Self::NoCertificate | Self::BadCertificate | Self::NoKey | Self::KeyKind => false,
        }
    }
}

impl ClientIdentity {
    /// Takes the content of the two files, which may be one.
    ///
    /// # Errors
    /// When they are no identity that AWS could accept at `now`.
    pub fn new(certificates: &[u8], key: &[u8], now: Timestamp) -> Result<Self, IdentityError> {
        const CERTIFICATE_FILE: &str = "the certificate file";
        const KEY_FILE: &str = "the key file";
        let mut found = Vec::new();
        for section in sections(certificates, CERTIFICATE_FILE)? {
            if let (SectionKind::Certificate, der) = section {
                found.push(Certificate::parse(&der).ok_or(IdentityError::BadCertificate)?);
            }
        }
        let mut found = found.into_iter();
        let leaf = found.next().ok_or(IdentityError::NoCertificate)?;
        let chain = found.filter(|certificate| !certificate.is_self_signed()).take(LONGEST_CHAIN).collect();

        remember_private_key(&String::from_utf8_lossy(key));
        let sections = sections(key, KEY_FILE)?;
        let key = sections.iter().find_map(|(kind, der)| private_key(*kind, der));
        let key = key.ok_or(IdentityError::NoKey)?;
        let key = any_supported_type(&key).map_err(|_| IdentityError::KeyKind)?;
        if key.choose_scheme(&SCHEMES).is_none() {
            return Err(IdentityError::KeyKind);
        }
        let public_key = key.public_key().ok_or(IdentityError::KeyKind)?;
        if public_key.as_ref() != leaf.public_key {
            return Err(IdentityError::Differ);
        }
        if now < leaf.not_before {
            return Err(IdentityError::NotYetValid(leaf.not_before));
        }
        if now > leaf.not_after {
            return Err(IdentityError::Expired(leaf.not_after));
        }
        Ok(Self { leaf, chain, key })
    }

    /// The name that AWS has for signatures by this key.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        if self.key.algorithm() == SignatureAlgorithm::RSA {
            "AWS4-X509-RSA-SHA256"
        } else {
            "AWS4-X509-ECDSA-SHA256"
        }
    }

    /// Signs a text; `None` if the key cannot.
    #[must_use]
    pub fn sign(&self, text: &str) -> Option<Vec<u8>> {
        self.key.choose_scheme(&SCHEMES)?.sign(text.as_bytes()).ok()
    }
}

/// A private key in DER, which is not copied; `None` if it is none.
fn private_key(kind: SectionKind, der: &[u8]) -> Option<PrivateKeyDer<'_>> {
    match kind {
        SectionKind::PrivateKey => Some(PrivateKeyDer::Pkcs8(der.into())),
        SectionKind::RsaPrivateKey => Some(PrivateKeyDer::Pkcs1(der.into())),
        SectionKind::EcPrivateKey => Some(PrivateKeyDer::Sec1(der.into())),
        _ => None,
    }
}

/// A section of a PEM file. Zeroed when dropped, since it may be a private key.
type Section = (SectionKind, Zeroizing<Vec<u8>>);

/// The sections of a PEM file.
fn sections(text: &[u8], file: &'static str) -> Result<Vec<Section>, IdentityError> {
    let found = <(SectionKind, Vec<u8>)>::pem_slice_iter(text)
        .map(|section| section.map(|(kind, der)| (kind, Zeroizing::new(der))));
    let found: Vec<_> = found.collect::<Result<_, pem::Error>>().map_err(|_| IdentityError::Torn(file))?;
    // A file is emptied before it is written.
    if text.trim_ascii().is_empty() { Err(IdentityError::Torn(file)) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
    use serde_json::Value;

    const NOW: &str = "2026-11-25T20:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn vectors() -> Vec<Value> {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/rolesanywhere.json")).unwrap();
        ["vectors", "extra"].iter().flat_map(|key| vectors[*key].as_array().unwrap().clone()).collect()
    }

    fn text(value: &Value) -> String {
        value.as_str().unwrap_or_default().to_owned()
    }

    /// The two files of a recorded request. Where there is no key, it stands in the certificate's file.
    fn files(vector: &Value) -> (String, String) {
        let certificate = text(&vector["certificate_pem"]);
        let key = vector["private_key_pem"].as_str().map_or_else(|| certificate.clone(), str::to_owned);
        (certificate + &text(&vector["chain_pem"]), key)
    }

    #[test]
    fn recorded_identities_are_taken_and_sign_as_recorded() {
        for vector in vectors() {
            let (certificates, key) = files(&vector);
            let identity = ClientIdentity::new(certificates.as_bytes(), key.as_bytes(), now());
            let name = text(&vector["name"]);
            // What the crypto library cannot sign with SHA-256.
            if ["ecdsa-p384", "ecdsa-p521"].contains(&name.as_str()) {
                assert_eq!(identity.unwrap_err(), IdentityError::KeyKind, "{name}");
                continue;
            }
            let identity = identity.unwrap();
            assert_eq!(identity.algorithm(), vector["algorithm"], "{name}");
            assert_eq!(identity.chain.len(), usize::from(vector["chain_pem"].is_string()), "{name}");
            let signature = identity.sign(vector["string_to_sign"].as_str().unwrap()).unwrap();
            if name.starts_with("rsa") {
                let hex: Vec<String> = signature.iter().map(|octet| format!("{octet:02x}")).collect();
                assert_eq!(
                    hex.concat(),
                    vector["signature_hex"],
                    "{name}: PKCS#1 signatures are always the same"
                );
            }
        }
    }

    #[test]
    fn files_that_are_no_identity_are_told_apart() {
        let made = |algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let (certificate, key) = made(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, other) = made(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (p384, p384_key) = made(&PKCS_ECDSA_P384_SHA384);
        let (ed25519, ed25519_key) = made(&PKCS_ED25519);
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cases: [(&str, &str, IdentityError); 11] = [
            ("", &key, IdentityError::Torn("the certificate file")),
            (&certificate, "", IdentityError::Torn("the key file")),
            (&certificate[..100], &key, IdentityError::Torn("the certificate file")),
            (&certificate, &key[..100], IdentityError::Torn("the key file")),
            (&key, &key, IdentityError::NoCertificate),
            (bad, &key, IdentityError::BadCertificate),
            (&certificate, &certificate, IdentityError::NoKey),
            (&certificate, &encrypted, IdentityError::NoKey),
            (&certificate, &other, IdentityError::Differ),
            (&p384, &p384_key, IdentityError::KeyKind),
            (&ed25519, &ed25519_key, IdentityError::KeyKind),
        ];
        for (number, (certificates, key, expected)) in cases.into_iter().enumerate() {
            let found = ClientIdentity::new(certificates.as_bytes(), key.as_bytes(), now()).unwrap_err();
            assert_eq!(found, expected, "case {number}");
        }
        let at =
            |now: &str| ClientIdentity::new(certificate.as_bytes(), key.as_bytes(), now.parse().unwrap());
        assert!(matches!(at("1970-01-01T00:00:00Z"), Err(IdentityError::NotYetValid(_))));
        assert!(matches!(at("9000-01-01T00:00:00Z"), Err(IdentityError::Expired(_))));
        // The certificates of CAs that stand in the file stay there.
        let with_root = format!("{certificate}{certificate}");
        assert!(ClientIdentity::new(with_root.as_bytes(), key.as_bytes(), now()).unwrap().chain.is_empty());
    }

    proptest! {
        #[test]
        fn no_files_are_too_strange(certificates in "\\PC{0,200}", at in 0_usize..900) {
            let (certificate, key) = files(&vectors()[0]);
            ClientIdentity::new(certificates.as_bytes(), key.as_bytes(), now()).ok();
            let cut = certificate.get(..at).unwrap_or_default();
            ClientIdentity::new(cut.as_bytes(), key.as_bytes(), now()).ok();
            ClientIdentity::new(certificate.as_bytes(), cut.as_bytes(), now()).ok();
        }
    }
}
