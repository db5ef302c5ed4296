//! A panic as one log line, without secrets.
//!
//! Panics of dependencies are survived: the attempt in which one happens fails. Their messages may hold what they worked on.

use super::redact::redact_at_once;
use std::panic::{PanicHookInfo, set_hook};

/// The longest message that is shown.
const LONGEST: usize = 300;

/// From now on a panic is logged, instead of printed as it is.
pub fn log_panics() {
    set_hook(Box::new(|panic| {
        tracing::error!(panic = %describe(panic), "a part of the program failed unexpectedly; please report it");
    }));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let message = redact_at_once(panic.payload_as_str().unwrap_or("no message"), LONGEST);
    format!("{} at {place}", message.as_deref().unwrap_or("a message that cannot be shown"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::redact::remember;
    use std::panic::{catch_unwind, take_hook};
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_panic_is_described_without_secrets() {
        remember("s3cret-of-a-panic");
        let seen = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&seen);
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if panic.payload_as_str().is_some_and(|text| text.contains("s3cret")) {
                let mut seen = String::new();
                // Another test may be removing secrets at this moment.
                while !seen.starts_with("no header") {
                    seen = describe(panic);
                }
                *shared.lock().unwrap() = seen;
            } else {
                usual(panic);
            }
        }));
        catch_unwind(|| panic!("no header value: s3cret-of-a-panic\n")).unwrap_err();
        let seen = seen.lock().unwrap();
        assert!(seen.starts_with("no header value: … at src/report/panics.rs:"), "{seen}");
    }
}
