//! The whole job on one machine, with no AWS account and no cluster: `cargo run --example demo`.
//!
//! An emulated ECR, a folder that stands for a node, one refresh by the program's own code, and a registry that asks for
//! the credentials.
#![expect(clippy::print_stdout, reason = "a demo shows what it does")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_emulator::{Emulator, Options};
use serde_json::Value;
use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const BEFORE: &str = r#"{
	"auths": {
		"registry.example.com": {
			"auth": "c29tZWJvZHk6c2VjcmV0"
		}
	},
	"credsStore": "somebody's own"
}
"#;

fn main() -> ExitCode {
    // Called with arguments this is the program itself, so that the demo needs nothing built beside it.
    if std::env::args_os().len() > 1 {
        return ecr_node_agent::main();
    }
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("The demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<(), Box<dyn Error>> {
    let aws = Emulator::start(Options::default())?;
    println!("An ECR of our own listens on {}.\n", aws.url());

    let node = tempfile::tempdir()?;
    let auth_file = node.path().join("var/lib/kubelet/config.json");
    std::fs::create_dir_all(auth_file.parent().ok_or("no parent")?)?;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&auth_file)?;
    file.write_all(BEFORE.as_bytes())?;
    // The agent waits while a program has the file open for writing.
    drop(file);
    println!(
        "A node's /var/lib/kubelet/config.json, with an entry of somebody else's:\n{}",
        redacted(&auth_file)?
    );
    println!("Its registry asks who we are:  GET https://{HOST}/v2/  ->  {}\n", ask(&aws, &auth_file)?);

    println!("$ ecr-node-agent --once");
    let status = Command::new(std::env::current_exe()?)
        .args(["--once", "--log-format", "text", "--auth-file"])
        .arg(&auth_file)
        .env_clear()
        .envs(aws.environment())
        .env("HOME", node.path())
        .status()?;
    if !status.success() {
        return Err(format!("the refresh ended with {status}").into());
    }
    println!(
        "\nThe file afterwards: what was there is there, in its order, and one entry is new:\n{}",
        redacted(&auth_file)?
    );
    println!("With the credentials in it:    GET https://{HOST}/v2/  ->  {}\n", ask(&aws, &auth_file)?);
    println!(
        "That is what the kubelet does at its next pull, with no imagePullSecrets and no API server.\n\
         On a real node: ecr-node-agent --once. What it needs there, and how to install it: README.md.\n\
         The emulator is a program too: cargo run -p ecr-emulator"
    );
    Ok(())
}

/// The file with every credential replaced by its length.
fn redacted(path: &Path) -> Result<String, Box<dyn Error>> {
    let mut document: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    for entry in document["auths"].as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        let length = entry["auth"].as_str().map_or(0, str::len);
        entry["auth"] = Value::from(format!("<{length} characters>"));
    }
    Ok(serde_json::to_string_pretty(&document)?)
}

/// Asks the emulated registry, as a container runtime would, with the credentials in the file. Returns its status line.
fn ask(aws: &Emulator, auth_file: &Path) -> Result<String, Box<dyn Error>> {
    let document: Value = serde_json::from_slice(&std::fs::read(auth_file)?)?;
    let auth = document["auths"][HOST]["auth"].as_str();
    // `auth` is base64 of `user:password`, which is what basic authentication wants; decoded once to show that it is.
    let header = match auth {
        Some(auth) if STANDARD.decode(auth)?.starts_with(b"AWS:") => {
            format!("Authorization: Basic {auth}\r\n")
        }
        Some(_) => return Err("the entry holds no token of ECR's".into()),
        None => String::new(),
    };
    let mut stream = TcpStream::connect(aws.address())?;
    write!(stream, "GET /v2/ HTTP/1.1\r\nHost: {HOST}\r\n{header}Connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().trim_start_matches("HTTP/1.1 ").to_owned())
}
