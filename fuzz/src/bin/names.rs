//! Images, keys and registries: what people and other programs write for them. One on each line: an image, a key, a registry.
#![no_main]

use fuzz::docker_config::image::Image;
use fuzz::docker_config::{key, matching};
use fuzz::registry::{Registry, host_of_proxy_endpoint, is_ecr_host};
use libfuzzer_sys::fuzz_target;
use std::hint::black_box;

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(3, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (image, key, registry) = (next(), next(), next());
    if let Ok(image) = image.parse::<Image>() {
        assert!(!image.reference().is_empty() && !image.path().is_empty());
        black_box(matching::matches(key, &image.repository()));
    }
    black_box(matching::matches(key, image));
    black_box(matching::is_of_the_default_registry(image));
    black_box(key::shown(key));
    black_box(key::index_key(key));
    black_box(is_ecr_host(key));
    black_box(host_of_proxy_endpoint(key));
    if let Ok(registry) = registry.parse::<Registry>() {
        assert_eq!(
            key::index_key(registry.key()).as_deref(),
            Some(registry.key()),
            "the kubelet files it under another key"
        );
    }
});
