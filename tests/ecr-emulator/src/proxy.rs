//! A forward proxy that takes every request to one place.
//!
//! A client that believes to talk to `ecr.eu-west-1.amazonaws.com:443` through it ends at an emulator, and the test
//! sees what host it asked for. `CONNECT` tunnels and plain requests with an absolute target are served, one request to
//! a connection; everything else gets 400.

use crate::background::{self, Background};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

/// A head longer than this is none.
const LONGEST_HEAD: usize = 64 << 10;

/// A running proxy. Dropping it closes every connection and joins its thread.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    route: Arc<Route>,
    _background: Background,
}

#[derive(Debug)]
struct Route {
    to: SocketAddr,
    /// The whole `Proxy-Authorization` header that is wanted.
    authorization: Option<String>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: Vec<String>,
    refused: usize,
}

impl Route {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Starts on a free port of 127.0.0.1 and sends everything to `to`. With `credentials`, a user and a password, it
    /// lets in only who has them.
    ///
    /// # Errors
    /// When the system gives no port or no thread.
    pub fn start(to: SocketAddr, credentials: Option<(&str, &str)>) -> io::Result<Self> {
        let listener = background::listen(0)?;
        let address = listener.local_addr()?;
        let authorization = credentials
            .map(|(user, password)| format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
        let route = Arc::new(Route { to, authorization, seen: Mutex::default() });
        let shared = Arc::clone(&route);
        let background = Background::start("test-proxy", move || serve(listener, shared))?;
        Ok(Self { address, route, _background: background })
    }

    /// `http://127.0.0.1:PORT`, without user and password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The `host:port` of every request that was let through, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.route.seen().requests.clone()
    }

    /// How many requests got 407, for want of the right user and password.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.route.seen().refused
    }
}

async fn serve(listener: std::net::TcpListener, route: Arc<Route>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let route = Arc::clone(&route);
                    connections.spawn(async move { pass(client, &route).await });
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            },
            // A client that goes away in the middle is nobody's fault here.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection.
async fn pass(mut client: TcpStream, route: &Route) -> io::Result<()> {
    let (head, rest) = read_head(&mut client).await?;
    let Some(asked) = Head::parse(&head) else {
        return client
            .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
    };
    if route
        .authorization
        .as_deref()
        .is_some_and(|wanted| asked.header("proxy-authorization") != Some(wanted))
    {
        route.seen().refused += 1;
        let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"test-proxy\"\r\n\
            Content-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(answer).await;
    }
    route.seen().requests.push(asked.host_and_port());

    let mut server = TcpStream::connect(route.to).await?;
    if asked.method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        server.write_all(asked.forwarded().as_bytes()).await?;
    }
    server.write_all(&rest).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// Reads to the empty line; what came after it is the second part.
async fn read_head(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        if bytes.len() > LONGEST_HEAD || client.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::other("no head of a request"));
        }
    }
}

/// The head of a request to a proxy.
#[derive(Debug)]
struct Head<'a> {
    method: &'a str,
    /// The host, with a port if one was named.
    authority: &'a str,
    /// The path and query; `/` for a tunnel, which does not use it.
    path: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

impl<'a> Head<'a> {
    fn parse(head: &'a str) -> Option<Self> {
        let mut lines = head.lines();
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?, first.next()?);
        let (authority, path) = if method == "CONNECT" {
            (target, "/")
        } else {
            let rest = target.strip_prefix("http://")?;
            rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash))
        };
        let headers = lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim()));
        Some(Self { method, authority, path, headers: headers.collect() })
    }

    fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    fn host_and_port(&self) -> String {
        // The `:` of an IPv6 address stands inside brackets, before which no port is.
        if self.authority.rsplit(']').next().is_some_and(|tail| tail.contains(':')) {
            self.authority.to_owned()
        } else {
            format!("{}:80", self.authority)
        }
    }

    /// The head for the server: a plain target, nothing for the proxy, and the connection's end after the answer.
    fn forwarded(&self) -> String {
        let hop_by_hop = ["proxy-authorization", "proxy-connection", "connection", "keep-alive"];
        let kept = self
            .headers
            .iter()
            .filter(|(name, _)| !hop_by_hop.iter().any(|hop| name.eq_ignore_ascii_case(hop)));
        let lines: Vec<_> = kept.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{} {} HTTP/1.1\r\n{}Connection: close\r\n\r\n", self.method, self.path, lines.concat())
    }
}
