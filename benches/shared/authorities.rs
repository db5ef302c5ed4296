//! The certificate authorities of this machine.
#![expect(unreachable_pub, reason = "a module of several programs")]

/// Where distributions keep the certificates of all public authorities.
const SYSTEM_BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// The certificates of the system's authorities; `None` if they are in no known place.
pub fn system() -> Option<String> {
    SYSTEM_BUNDLES.iter().find_map(|path| std::fs::read_to_string(path).ok())
}
