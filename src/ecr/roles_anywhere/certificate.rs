//! What has to be known of an X.509 certificate: its serial number, its names, its validity, its public key and its usage.
//!
//! The signature is not checked here: AWS does that.

use crate::report::redact::redact_known;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use std::fmt;

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// All of it, in DER.
    pub der: Vec<u8>,
    /// The serial number, in decimal.
    pub serial: String,
    /// Who signed it.
    pub issuer: Name,
    /// Whom it is for.
    pub subject: Name,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// The public key, as a `SubjectPublicKeyInfo` in DER.
    pub public_key: Vec<u8>,
    /// Whether it may be used for signatures. Without a key usage it may be used for everything.
    pub may_sign: bool,
    /// Whether it is the certificate of a CA.
    pub is_ca: bool,
}

/// A name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// All of it, in DER.
    der: Vec<u8>,
    /// The parts that AWS's trust policies look at, as `O=system:nodes, CN=system:node:one`.
    shown: String,
}

impl Name {
    /// Whether the name has no part at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.der.len() <= 2
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.shown.is_empty() { "(without CN and O)" } else { &self.shown })
    }
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xA0;
const EXTENSIONS: u8 = 0xA3;
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const ORGANIZATION: [u8; 3] = [0x55, 0x04, 0x0A];
const KEY_USAGE: [u8; 3] = [0x55, 0x1D, 0x0F];
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1D, 0x13];
/// How many octets a serial number has at most: 20, and a leading zero (RFC 5280, section 4.1.2.2).
const LONGEST_SERIAL: usize = 21;
/// How much of a name is shown, and of a part of it. A part of AWS's has 64 characters at most.
const LONGEST_NAME: usize = 256;
const LONGEST_PART: usize = 128;
/// The first bit of the key usage.
const DIGITAL_SIGNATURE: u8 = 0x80;

impl Certificate {
    /// Reads a certificate; `None` if it is none.
    #[must_use]
    pub fn parse(der: &[u8]) -> Option<Self> {
        let mut certificate = Der(Der(der).take(SEQUENCE)?.content);
        let mut body = Der(certificate.take(SEQUENCE)?.content);
        if body.0.first() == Some(&VERSION) {
            body.take(VERSION)?;
        }
        let serial = decimal(body.take(INTEGER)?.content)?;
        body.take(SEQUENCE)?;
        let issuer = name(body.take(SEQUENCE)?)?;
        let mut validity = Der(body.take(SEQUENCE)?.content);
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        let subject = name(body.take(SEQUENCE)?)?;
        let public_key = body.take(SEQUENCE)?.whole.to_vec();
        let (mut may_sign, mut is_ca) = (true, false);
        while let Some(element) = body.next() {
            if element.tag == EXTENSIONS {
                (may_sign, is_ca) = usage(element)?;
            }
        }
        let der = der.to_vec();
        Some(Self { der, serial, issuer, subject, not_before, not_after, public_key, may_sign, is_ca })
    }

    /// Whether it is signed by itself, as the certificate of a root CA.
    #[must_use]
    pub fn is_self_signed(&self) -> bool {
        self.issuer.der == self.subject.der
    }
}

/// The rest of some DER.
struct Der<'a>(&'a [u8]);

/// An element of DER.
#[derive(Clone, Copy)]
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

impl<'a> Der<'a> {
    /// The next element, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<Element<'a>> {
        self.next().filter(|element| element.tag == tag)
    }

    fn next(&mut self) -> Option<Element<'a>> {
        let (tag, first) = (*self.0.first()?, *self.0.get(1)?);
        let (start, length) = match first {
            0..=0x7F => (2, usize::from(first)),
            // In certificates, lengths have three octets at most.
            0x81..=0x83 => {
                let octets = self.0.get(2..2 + usize::from(first & 0x7F))?;
                let length = octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
                (2 + octets.len(), length)
            }
            _ => return None,
        };
        let content = self.0.get(start..start.checked_add(length)?)?;
        let (whole, rest) = self.0.split_at(start + length);
        self.0 = rest;
        Some(Element { tag, content, whole })
    }
}

fn name(element: Element<'_>) -> Option<Name> {
    let mut shown = Vec::new();
    let mut sets = Der(element.content);
    while let Some(set) = sets.next() {
        let mut attributes = Der((set.tag == SET).then_some(set.content)?);
        while let Some(attribute) = attributes.next() {
            let mut parts = Der(attribute.content);
            let (kind, value) = (parts.take(OID)?.content, parts.next()?.content);
            // Whoever issues certificates chooses the text.
            let value = redact_known(&String::from_utf8_lossy(value), LONGEST_PART);
            if kind == COMMON_NAME {
                shown.push(format!("CN={value}"));
            } else if kind == ORGANIZATION {
                shown.push(format!("O={value}"));
            }
        }
    }
    Some(Name { der: element.whole.to_vec(), shown: redact_known(&shown.join(", "), LONGEST_NAME) })
}

fn time(der: &mut Der<'_>) -> Option<Timestamp> {
    let element = der.next()?;
    let text = std::str::from_utf8(element.content).ok()?;
    let text = match element.tag {
        // Years from 1950 to 2049.
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    Offset::UTC.to_timestamp(time).ok()
}

/// Whether the extensions allow signatures, and whether they are those of a CA.
fn usage(element: Element<'_>) -> Option<(bool, bool)> {
    let mut extensions = Der(Der(element.content).take(SEQUENCE)?.content);
    let (mut may_sign, mut is_ca) = (true, false);
    while let Some(extension) = extensions.next() {
        let mut parts = Der(extension.content);
        let kind = parts.take(OID)?.content;
        let mut value = parts.next()?;
        if value.tag == BOOLEAN {
            value = parts.next()?;
        }
        let mut value = Der((value.tag == OCTET_STRING).then_some(value.content)?);
        if kind == KEY_USAGE {
            let bits = value.take(BIT_STRING)?.content;
            may_sign = bits.get(1).is_some_and(|bits| bits & DIGITAL_SIGNATURE != 0);
        } else if kind == BASIC_CONSTRAINTS {
            let ca = Der(value.take(SEQUENCE)?.content).take(BOOLEAN);
            is_ca = ca.is_some_and(|ca| ca.content != [0]);
        }
    }
    Some((may_sign, is_ca))
}

/// A serial number in decimal; `None` if it is longer than any may be.
fn decimal(octets: &[u8]) -> Option<String> {
    if octets.len() > LONGEST_SERIAL {
        return None;
    }
    let mut number = octets.to_vec();
    let mut digits = Vec::new();
    while number.iter().any(|octet| *octet != 0) {
        let mut rest: u16 = 0;
        for octet in &mut number {
            let value = rest << 8 | u16::from(*octet);
            (*octet, rest) = (u8::try_from(value / 10).unwrap_or(0), value % 10);
        }
        digits.push(char::from_digit(u32::from(rest), 10).unwrap_or('0'));
    }
    Some(if digits.is_empty() { "0".to_owned() } else { digits.iter().rev().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SerialNumber};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use serde_json::Value;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Certificate::parse(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn recorded_certificates_are_read() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/rolesanywhere.json")).unwrap();
        let all = vectors["vectors"].as_array().unwrap().iter().chain(vectors["extra"].as_array().unwrap());
        for vector in all {
            let pem = vector["certificate_pem"].as_str().unwrap();
            let certificate =
                Certificate::parse(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
            assert_eq!(certificate.serial, vector["serial_number_decimal"], "{}", vector["name"]);
            assert!(!certificate.is_self_signed() && !certificate.is_ca && certificate.may_sign);
            assert!(certificate.subject.to_string().contains("CN=system:node:"), "{}", certificate.subject);
            assert!(!certificate.issuer.is_empty());
        }
    }

    #[test]
    fn names_usage_and_validity_are_read() {
        let plain = made(|_| {});
        assert!(plain.subject.is_empty() && plain.may_sign && !plain.is_ca && plain.is_self_signed());
        assert_eq!(plain.subject.to_string(), "(without CN and O)");
        let node = made(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
            params.distinguished_name.push(DnType::CommonName, "system:node:knöten");
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            params.serial_number = Some(SerialNumber::from_slice(&[0, 255, 0]));
            params.not_before = rcgen::date_time_ymd(2049, 12, 31);
            params.not_after = rcgen::date_time_ymd(2051, 1, 2);
        });
        assert_eq!(node.subject.to_string(), "O=system:nodes, CN=system:node:knöten");
        assert_eq!(node.serial, "65280");
        assert!(node.may_sign && !node.is_ca);
        assert_eq!(node.not_before, "2049-12-31T00:00:00Z".parse().unwrap());
        assert_eq!(node.not_after, "2051-01-02T00:00:00Z".parse().unwrap());
        let odd = made(|params| {
            params.distinguished_name.push(DnType::CommonName, format!("a\u{1b}[2J{}", "b".repeat(1000)));
        });
        let odd = odd.subject.to_string();
        assert!(odd.starts_with("CN=a") && !odd.contains('\u{1b}') && odd.len() < 300, "{odd}");
        let ca = made(|params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        });
        assert!(ca.is_ca && !ca.may_sign);
    }

    #[test]
    fn numbers_are_decimal() {
        let cases: [(&[u8], &str); 5] = [
            (&[], "0"),
            (&[0], "0"),
            (&[0, 128], "128"),
            (&[1, 0, 0], "65536"),
            (&[255; 20], "1461501637330902918203684832716283019655932542975"),
        ];
        for (octets, expected) in cases {
            assert_eq!(decimal(octets).as_deref(), Some(expected));
        }
        assert_eq!(decimal(&[1; 22]), None);
    }

    #[test]
    fn a_certificate_with_a_huge_serial_number_is_refused_at_once() {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&vec![1; 190_000]));
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(Certificate::parse(der.der()), None);
    }

    proptest! {
        #[test]
        fn no_octets_are_too_strange(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(Certificate::parse(&octets));
        }

        #[test]
        fn a_certificate_with_one_changed_octet_is_read_or_not(at in 0_usize..400, octet in any::<u8>()) {
            let mut der = made(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]).der;
            let at = at % der.len();
            der[at] = octet;
            drop(Certificate::parse(&der));
        }
    }
}
