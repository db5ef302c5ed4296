//! What a registry asks for: the values of `WWW-Authenticate`, one on each line.
#![no_main]

use fuzz::challenge::{self, Challenge, Endpoint};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|headers: &str| {
    let Some(Challenge::Bearer { realm, service }) = challenge::parse(headers.lines()) else { return };
    for tls in [false, true] {
        let registry = Endpoint { host: "registry.example.com".to_owned(), tls };
        let Ok(url) = challenge::token_url(&realm, service.as_deref(), "team/app", &registry) else {
            continue;
        };
        let is_registry = url.starts_with("http://registry.example.com");
        assert!(url.starts_with("https://") || !tls && is_registry, "a credential would go to {url}");
        assert!(!url.contains(char::is_whitespace), "{url}");
    }
});
