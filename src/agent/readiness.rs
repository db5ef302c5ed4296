//! Whether each registry that is asked for has a valid entry on disk (no I/O).

use super::auth_files::{AuthFiles, EntryInPlace};
use super::sources::AskedFor;
use crate::report::metrics::RegistryState;
use jiff::Timestamp;

/// The label of the default registry while only ECR knows its name.
const DEFAULT: &str = "default";

/// The state of each registry that is asked for, as it is on disk. Empty for an agent without auth files.
#[must_use]
pub fn registries(asked_for: Vec<AskedFor>, files: &AuthFiles, now: Timestamp) -> Vec<RegistryState> {
    let mut registries = Vec::new();
    for AskedFor { keys, source, may_be_absent } in asked_for {
        let keys = keys.unwrap_or_else(|| {
            // A restart over an expired entry: nobody has named the registry yet, but the entry is there.
            let remembered = files.default_keys(source.as_deref());
            if remembered.is_empty() { vec![DEFAULT.to_owned()] } else { remembered }
        });
        registries.extend(keys.into_iter().filter(|key| !may_be_absent || files.has(key)).map(|registry| {
            let entry = files.in_place(&registry);
            let (is_ready, fetched_at, expires_at) = match entry {
                Some(EntryInPlace { fetched_at, expires_at }) => {
                    (now < expires_at, Some(fetched_at), Some(expires_at))
                }
                None => (false, None, None),
            };
            RegistryState { registry, is_ready, fetched_at, expires_at }
        }));
    }
    if files.is_empty() { Vec::new() } else { registries }
}
