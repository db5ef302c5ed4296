//! Which paths of the node this process can see.
//!
//! In a pod the root directory is the container's. A path there that is not below a mounted directory says nothing about the
//! node: it is unknown, not missing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The variable that the kubelet sets in every container of a pod.
const IN_A_POD: &str = "KUBERNETES_SERVICE_HOST";

/// What this process can see of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    /// It runs on the node itself.
    Everything,
    /// It runs in a pod, and sees what is mounted there.
    Mounted(Vec<PathBuf>),
}

impl Visibility {
    /// What this process can see. In a pod whose mounts cannot be read, that is nothing.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "says where the program runs, which is no setting")]
    pub fn of_this_process() -> Self {
        if std::env::var_os(IN_A_POD).is_none_or(|host| host.is_empty()) {
            return Self::Everything;
        }
        Self::Mounted(mount_points(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()))
    }

    /// Whether a path is in a directory of the node.
    #[must_use]
    pub fn shows(&self, path: &Path) -> bool {
        match self {
            Self::Everything => true,
            Self::Mounted(points) => points.iter().any(|point| path.starts_with(point)),
        }
    }
}

/// The mount points in `/proc/self/mountinfo`, except the container's own: its root, and what every container has.
fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    let own = ["/proc", "/sys", "/dev"].map(Path::new);
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    points.filter(|point| point != Path::new("/") && !own.iter().any(|own| point.starts_with(own))).collect()
}

/// A path without the kernel's octal escapes, as `\040` for a space.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(escaped) =
            code.filter(|_| byte == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            bytes.push(escaped);
            rest = &tail[3..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_pod_only_mounted_directories_are_the_nodes() {
        let mountinfo = "\
22 1 0:21 / / rw,relatime - overlay overlay rw\n\
23 22 0:22 / /proc rw - proc proc rw\n\
24 22 0:23 / /dev/shm rw - tmpfs shm rw\n\
25 22 8:1 /var/lib/kubelet/ecr-node-agent /var/lib/kubelet/ecr-node-agent rw - ext4 /dev/sda1 rw\n\
26 22 8:1 /root/my\\040docker /root/my\\040docker ro - ext4 /dev/sda1 rw\n";
        let visibility = Visibility::Mounted(mount_points(mountinfo));
        let cases = [
            ("/var/lib/kubelet/ecr-node-agent/config.json", true),
            ("/var/lib/kubelet/config.json", false),
            ("/root/my docker/config.json", true),
            ("/root/.docker/config.json", false),
            ("/config.json", false),
            ("/dev/shm/config.json", false),
        ];
        for (path, is_seen) in cases {
            assert_eq!(visibility.shows(Path::new(path)), is_seen, "{path}");
            assert!(Visibility::Everything.shows(Path::new(path)));
        }
    }
}
