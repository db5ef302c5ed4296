//! Whether SELinux may be the reason that a system call was refused.

use nix::errno::Errno;
use std::fs;

/// The process's security context, of whatever security module.
const CONTEXT: &str = "/proc/self/attr/current";

/// What to add to the message of a refused system call; empty if SELinux does not confine this process.
pub(super) fn hint(errno: Errno) -> String {
    if errno != Errno::EACCES {
        return String::new();
    }
    fs::read_to_string(CONTEXT).map(|context| for_context(&context)).unwrap_or_default()
}

/// The hint for a context `USER:ROLE:TYPE:LEVEL`. Other security modules write the name of a profile there.
fn for_context(context: &str) -> String {
    let parts: Vec<&str> = context.trim_end_matches(['\0', '\n']).split(':').collect();
    match parts.as_slice() {
        [_, _, kind, _, ..]
            if kind.ends_with("_t") && !kind.starts_with("unconfined") && *kind != "spc_t" =>
        {
            format!(
                " (SELinux confines this process to the type {kind}; to write there, a container needs spc_t)"
            )
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_confining_type_of_selinux_is_named() {
        let cases = [
            ("system_u:system_r:container_t:s0:c1,c2\0", "to the type container_t;"),
            ("system_u:system_r:init_t:s0\n", "to the type init_t;"),
            ("system_u:system_r:spc_t:s0\0", ""),
            ("unconfined_u:unconfined_r:unconfined_t:s0", ""),
            ("system_u:system_r:unconfined_service_t:s0", ""),
            ("cri-containerd.apparmor.d (enforce)\n", ""),
            ("unconfined\n", ""),
            ("", ""),
        ];
        for (context, words) in cases {
            let hint = for_context(context);
            assert!(hint.contains(words) && hint.is_empty() == words.is_empty(), "{context}: {hint}");
        }
        assert_eq!(hint(Errno::EPERM), "");
    }
}
