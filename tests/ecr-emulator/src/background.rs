//! A server on a thread of its own, so that synchronous tests can use it.

use std::{future::Future, io, net::TcpListener, thread};
use tokio::{runtime, sync::oneshot};

/// A thread with its own runtime. Dropping it ends every connection at once and joins the thread.
#[derive(Debug)]
pub(crate) struct Background {
    /// Never sent on: that it is gone is the message.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Background {
    /// Runs the future that `serve` makes until the value is dropped.
    ///
    /// # Errors
    /// When the system gives no runtime or no thread.
    pub(crate) fn start<F>(name: &str, serve: impl FnOnce() -> F + Send + 'static) -> io::Result<Self>
    where
        F: Future<Output = io::Result<()>>,
    {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = serve() => {}
                    _ = stopped => {}
                }
            });
            // The runtime goes here, and with it every connection: also the ones that hang on purpose.
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Only a panic of the server makes this fail, and its message is on standard error already.
            thread.join().unwrap_or_default();
        }
    }
}

/// A listener on loopback that a runtime can take over with `from_std`. Port 0 asks for a free one.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
