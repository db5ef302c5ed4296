//! Mounts that come and go.
//!
//! What is mounted over a watched directory hides it, and a watch on what is hidden sees nothing: on a node whose
//! kubelet's root moves to another disk while it boots, the agent would keep a file that nobody reads. The kernel tells of
//! every change of `/proc/self/mountinfo` (proc(5)), and says nothing in between.

use std::fs::File;
use std::io;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The mounts that this process sees.
#[derive(Debug)]
pub struct Mounts(AsyncFd<File>);

impl Mounts {
    /// Listens from now on, in the runtime that runs now.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn listen() -> io::Result<Self> {
        let mounts = File::open("/proc/self/mountinfo")?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe for the sake of types that are not I/O safe; `File` is"
        )]
        // Not for reading, which is always possible.
        Ok(Self(AsyncFd::with_interest(mounts, Interest::PRIORITY)?))
    }

    /// Waits until something was mounted or unmounted, somewhere. May be dropped while it waits.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn changed(&self) -> io::Result<()> {
        // The kernel has forgotten the change once it has told it: nothing must be read.
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn nothing_is_told_while_nothing_changes() {
        let mounts = Mounts::listen().unwrap();
        // Others may mount something meanwhile, but not for so long without a pause.
        let quiet = async {
            while tokio::time::timeout(Duration::from_millis(20), mounts.changed()).await.is_ok() {}
        };
        tokio::time::timeout(Duration::from_secs(30), quiet).await.unwrap();
    }
}
