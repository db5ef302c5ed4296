//! What some tests need beyond Rust. Where it is missing, a test is left out with one line that says so; with
//! `ECR_NODE_AGENT_TEST_ALL=1`, as in CI, it fails instead.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Something that not every machine has.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// The user root.
    Root,
    /// `strace`, as root: the program switches core dumps off, and then only root may read the arguments of its calls.
    Strace,
    /// `bindfs`, allowed to mount.
    Fuse,
    /// `promtool`, of Prometheus.
    Promtool,
    /// A virtual machine: `qemu-system-x86_64`, a static `busybox`, and Debian's kernel, which
    /// `ECR_NODE_AGENT_TEST_KERNEL` names.
    VirtualMachine,
    /// User namespaces, and limits in them.
    UserNamespace,
    /// Mounts in a namespace of their own (`unshare`, root).
    Mounts,
    /// Extended attributes in `security.`, on the file system of the temporary directory.
    SecurityAttributes,
    /// `helm`.
    Helm,
    /// `vim`.
    Vim,
    /// `jq`.
    Jq,
    /// `sponge`, of moreutils.
    Sponge,
    /// Docker's command line; no daemon is needed.
    Docker,
    /// `podman`.
    Podman,
    /// A Kubernetes API server, as `tests/kubernetes/build` makes it.
    ApiServer,
    /// The kubelet's lookup of credentials as programs, as `tests/kubernetes/build` makes them.
    Oracle,
    /// The kubelet's plugins as programs, as `tests/kubernetes/build` makes them.
    PluginOracle,
    /// AWS's plugin of the kubelet, as `tests/kubernetes/build` makes it.
    EcrCredentialProvider,
    /// The lookup of credentials that CRI-O and podman share as a program, as `tests/kubernetes/build` makes it.
    ContainersImage,
    /// `aws`, the AWS CLI.
    AwsCli,
    /// `rolesanywhere-credential-helper`, AWS's own client for IAM Roles Anywhere.
    SigningHelper,
}

/// Whether all of it is here. Says what is missing, or fails where nothing may be.
pub fn all_here(needs: &[Need]) -> bool {
    let Some(missing) = needs.iter().find(|need| !need.is_here()) else { return true };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let everything = std::env::var_os("ECR_NODE_AGENT_TEST_ALL").is_some();
    assert!(!everything, "{test} needs {missing:?}, which is not here");
    tell(&format!("skipped: {test} needs {missing:?}, which is not here"));
    false
}

/// Says something that is to be seen although the test passes.
pub fn tell(line: &str) {
    // Not by a macro, whose output the test harness keeps to itself.
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

impl Need {
    fn is_here(self) -> bool {
        match self {
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Strace => Self::Root.is_here() && works("strace", &["-o", "/dev/null", "true"]),
            Self::Fuse => works("bindfs", &["--version"]) && std::path::Path::new("/dev/fuse").exists(),
            Self::Helm => works("helm", &["version"]),
            Self::Vim => works("vim", &["--version"]),
            Self::Jq => works("jq", &["--version"]),
            Self::Sponge => works("sponge", &["-h"]),
            Self::Docker => works("docker", &["--version"]),
            Self::Podman => works("podman", &["--version"]),
            Self::Promtool => works("promtool", &["--version"]),
            Self::VirtualMachine => {
                works("qemu-system-x86_64", &["--version"])
                    && works("busybox", &["true"])
                    && kernel().is_some_and(|kernel| kernel.is_file())
            }
            Self::UserNamespace => works(
                "unshare",
                &["--user", "--map-root-user", "sh", "-c", "echo 9 >/proc/sys/user/max_inotify_instances"],
            ),
            Self::Mounts => {
                Self::Root.is_here()
                    && works(
                        "unshare",
                        &["--mount", "--propagation", "private", "mount", "-t", "tmpfs", "t", "/mnt"],
                    )
            }
            Self::SecurityAttributes => {
                let file = tempfile::NamedTempFile::new().unwrap();
                rustix::fs::fsetxattr(&file, "security.selinux", b"u:r:t:s0", rustix::fs::XattrFlags::empty())
                    .is_ok()
            }
            Self::ApiServer => crate::cluster::is_here(),
            Self::Oracle => crate::oracle::is_here(),
            Self::PluginOracle => crate::plugin_oracle::is_here(),
            Self::EcrCredentialProvider => crate::plugin_peer::is_here(),
            Self::ContainersImage => crate::containers_image::is_here(),
            Self::AwsCli => works("aws", &["--version"]),
            Self::SigningHelper => works("rolesanywhere-credential-helper", &["version"]),
        }
    }
}

/// The kernel of the virtual machine.
pub fn kernel() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "test code")]
    std::env::var_os("ECR_NODE_AGENT_TEST_KERNEL").map(PathBuf::from)
}

/// Where a program is found.
pub fn found(program: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
