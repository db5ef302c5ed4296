//! `refresh-floor FILE`: the least that a refresh can cost. One signed `GetAuthorizationToken` over verified TLS 1.3, with the
//! TLS stack of the agent, and one file that is replaced atomically.
//!
//! It reads the same variables as the agent. It has no proxies, no timeouts and no retries, and it looks at neither the old
//! file nor the fields of the answer apart from the token.

use jiff::Timestamp;
use ring::{digest, hmac};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const BODY: &str = "{}";

fn main() -> Result<()> {
    let file = std::env::args().nth(1).ok_or("no file is given")?;
    let endpoint = variable("AWS_ENDPOINT_URL")?;
    let (scheme, host) = endpoint.split_once("://").ok_or("the endpoint is no URL")?;
    let request = request(host)?;
    let connection = TcpStream::connect(host)?;
    connection.set_nodelay(true)?;
    let answer = match scheme {
        "https" => {
            let name = host.split(':').next().unwrap_or_default().to_owned();
            let client = ClientConnection::new(Arc::new(tls()?), name.try_into()?)?;
            exchange(StreamOwned::new(client, connection), &request)?
        }
        _ => exchange(connection, &request)?,
    };
    if !answer.starts_with("HTTP/1.1 200 ") {
        return Err(answer.into());
    }
    let token = answer.split_once("\"authorizationToken\":\"").ok_or("the answer holds no token")?.1;
    let token = token.split('"').next().unwrap_or_default();
    let registry = format!("123456789012.dkr.ecr.{}.amazonaws.com", variable("AWS_REGION")?);
    replace(Path::new(&file), &format!("{{\"auths\":{{\"{registry}\":{{\"auth\":\"{token}\"}}}}}}"))
}

#[expect(clippy::disallowed_methods, reason = "this program has no settings of its own")]
fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|error| format!("{name}: {error}").into())
}

fn tls() -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&fs::read(variable("AWS_CA_BUNDLE")?)?) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The request, with its signature (AWS's version 4).
#[expect(clippy::disallowed_methods, reason = "a signature has a time")]
fn request(host: &str) -> Result<String> {
    let (region, id, secret) =
        (variable("AWS_REGION")?, variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = &time[..8];
    let kind = "application/x-amz-json-1.1";
    let signed = "content-type;host;x-amz-date;x-amz-target";
    let canonical = format!(
        "POST\n/\n\ncontent-type:{kind}\nhost:{host}\nx-amz-date:{time}\nx-amz-target:{TARGET}\n\n{signed}\n{}",
        hash(BODY)
    );
    let scope = format!("{date}/{region}/ecr/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hash(&canonical));
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [date, &region, "ecr", "aws4_request", &to_sign] {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={signed}, Signature={}", hex(&key));
    Ok(format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         X-Amz-Date: {time}\r\nX-Amz-Target: {TARGET}\r\nAuthorization: {authorization}\r\n\r\n{BODY}",
        BODY.len()
    ))
}

fn hash(text: &str) -> String {
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

fn exchange(mut connection: impl Read + Write, request: &str) -> Result<String> {
    connection.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    match connection.read_to_end(&mut answer) {
        // The emulator may end a connection without saying so in TLS.
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error.into()),
        _ => Ok(String::from_utf8(answer)?),
    }
}

fn replace(file: &Path, text: &str) -> Result<()> {
    let folder = file.parent().ok_or("the file has no folder")?;
    let temporary = folder.join("floor.tmp");
    let mut new = File::create(&temporary)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&temporary, file)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}
