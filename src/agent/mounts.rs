//! Notices mounts and unmounts.
//!
//! A file system that is mounted over a watched directory hides it, and a watch on a hidden directory sees nothing. On a node
//! whose kubelet root moves to another disk during boot, the agent would keep a file that the kubelet does not read. The kernel
//! reports every change of `/proc/self/mountinfo` (proc(5)).

use std::fs::File;
use std::io;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The mounts of this process's mount namespace.
#[derive(Debug)]
pub struct Mounts(AsyncFd<File>);

impl Mounts {
    /// Notices changes from now on, in the runtime that runs now.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn listen() -> io::Result<Self> {
        let mounts = File::open("/proc/self/mountinfo")?;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe because of types that are not I/O safe; `File` is"
        )]
        // A change is a priority event; the file can always be read.
        Ok(Self(AsyncFd::with_interest(mounts, Interest::PRIORITY)?))
    }

    /// Waits until something is mounted or unmounted anywhere. May be dropped while it waits.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn changed(&self) -> io::Result<()> {
        // The kernel reports each change once; nothing has to be read.
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn nothing_is_reported_while_nothing_changes() {
        let mounts = Mounts::listen().unwrap();
        // Other programs may mount something meanwhile, but not all the time.
        let quiet = async {
            while tokio::time::timeout(Duration::from_millis(20), mounts.changed()).await.is_ok() {}
        };
        tokio::time::timeout(Duration::from_secs(30), quiet).await.unwrap();
    }
}
