//! The network between two programs on this machine, which can be cut or fall silent.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

/// A port of its own that leads to another. Dropping it cuts everything.
pub struct Wire {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    to: u16,
    silent: AtomicBool,
    ended: AtomicBool,
    taken: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Wire {
    /// Leads to a port on 127.0.0.1.
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let own = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            to: port,
            silent: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
            open: Mutex::new(Vec::new()),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || accept(&listener, &shared))
        };
        Self { port: own, shared, accepting: Some(accepting) }
    }

    /// `https://127.0.0.1:PORT`, the port being its own.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// How many connections it has taken.
    pub fn taken(&self) -> usize {
        self.shared.taken.load(Ordering::SeqCst)
    }

    /// From now on connections are taken, and nothing comes through; what comes stays in the wire.
    pub fn silence(&self) {
        self.shared.silent.store(true, Ordering::SeqCst);
    }

    /// What was held comes through again.
    pub fn speak(&self) {
        self.shared.silent.store(false, Ordering::SeqCst);
    }

    /// Ends all connections that there are now.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            // The other side may have ended it already.
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // It waits for the next connection.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
        self.cut();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for near in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        shared.taken.fetch_add(1, Ordering::SeqCst);
        let (Ok(near), Ok(far)) = (near, TcpStream::connect(("127.0.0.1", shared.to))) else { continue };
        let mut open = shared.open.lock().unwrap();
        open.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
        drop(open);
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let shared = Arc::clone(shared);
            thread::spawn(move || carry(from, to, &shared));
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = from.read(&mut bytes).unwrap_or(0);
        while shared.silent.load(Ordering::SeqCst) && !shared.ended.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(5));
        }
        if count == 0 || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // Either end may be gone.
    to.shutdown(Shutdown::Both).ok();
    from.shutdown(Shutdown::Both).ok();
}
