//! The emulator as a program, to try things by hand: prints how to reach it and runs until it is interrupted.
#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use clap::Parser;
use ecr_emulator::{Api, Emulator, Fault, Options, RolesAnywhere, Times};
use jiff::SignedDuration;
use std::{
    fs, fs::File, io, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf, str::FromStr, thread,
    time::Duration,
};

/// Stands in for Amazon ECR, STS and the metadata services on 127.0.0.1, and fails as told.
#[derive(Debug, Parser)]
struct Cli {
    /// The port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The account whose registry the answers name.
    #[arg(long, default_value = "123456789012")]
    account: String,
    /// The region of the emulated instance.
    #[arg(long, default_value = "eu-west-1")]
    region: String,
    /// How long an authorization token lives, for example `90s`.
    #[arg(long, default_value = "12h")]
    token_lifetime: SignedDuration,
    /// How far the emulator's clock is ahead of the real one, for example `20m` or `-20m`.
    #[arg(long, default_value = "0s", allow_hyphen_values = true)]
    clock_offset: SignedDuration,
    /// Speaks TLS, with a certificate for `localhost` and 127.0.0.1, and writes the CA to trust to this file.
    #[arg(long, value_name = "FILE")]
    tls_ca_file: Option<PathBuf>,
    /// A further name in the certificate; repeatable.
    #[arg(long, value_name = "NAME", requires = "tls_ca_file")]
    tls_name: Vec<String>,
    /// Appends the password of each authorization token it issues to this file, one a line: for a registry that is to
    /// accept it.
    #[arg(long, value_name = "FILE")]
    passwords_file: Option<PathBuf>,
    /// Makes the CA in this file, as PEM, a trust anchor of IAM Roles Anywhere.
    #[arg(long, value_name = "FILE")]
    roles_anywhere_ca: Option<PathBuf>,
    /// Makes an API fail, the first N times or always; repeatable.
    ///
    /// APIs: ecr, ecr-public, assume-role, web-identity, roles-anywhere, imds-session, imds-credentials, imds-region, container,
    /// registry. Faults: throttle, access-denied, unrecognized-client, expired-credentials, internal-error, unavailable,
    /// hang, garbage, huge-body, not-found, forbidden, slow-drip, reset, cut-off, empty-data, no-token, no-expiry,
    /// token-not-base64, token-without-colon, expired-token, no-proxy-endpoint, evil-proxy-endpoint, absurd-lifetime.
    #[arg(long, value_name = "API[@REGION]=FAULT[:N]")]
    fail: Vec<Failure>,
}

/// A fault, where and how often, written `API[@REGION]=FAULT[:N]`.
#[derive(Debug, Clone)]
struct Failure {
    api: Api,
    region: Option<String>,
    fault: Fault,
    times: Times,
}

impl FromStr for Failure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (api, fault) = text.split_once('=').ok_or("expected API=FAULT, for example `ecr=throttle:2`")?;
        let (api, region) = match api.split_once('@') {
            Some((api, region)) => (api, Some(region.to_owned())),
            None => (api, None),
        };
        let (fault, times) = match fault.split_once(':') {
            Some((fault, count)) => {
                let count = count.parse().map_err(|_| format!("`{count}` is no number of times"))?;
                (fault, Times::First(count))
            }
            None => (fault, Times::Always),
        };
        Ok(Self {
            api: api_named(api).ok_or_else(|| format!("`{api}` is no API: see --help"))?,
            region,
            fault: fault_named(fault).ok_or_else(|| format!("`{fault}` is no fault: see --help"))?,
            times,
        })
    }
}

fn api_named(name: &str) -> Option<Api> {
    Some(match name {
        "ecr" => Api::Ecr,
        "ecr-public" => Api::EcrPublic,
        "assume-role" => Api::AssumeRole,
        "web-identity" => Api::WebIdentity,
        "roles-anywhere" => Api::RolesAnywhere,
        "imds-session" => Api::ImdsSession,
        "imds-credentials" => Api::ImdsCredentials,
        "imds-region" => Api::ImdsRegion,
        "container" => Api::Container,
        "registry" => Api::Registry,
        _ => return None,
    })
}

fn fault_named(name: &str) -> Option<Fault> {
    Some(match name {
        "throttle" => Fault::Throttle,
        "access-denied" => Fault::access_denied(),
        "unrecognized-client" => Fault::error(
            400,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        "expired-credentials" => Fault::error(
            400,
            "ExpiredTokenException",
            "The security token included in the request is expired",
        ),
        "internal-error" => Fault::InternalError,
        "unavailable" => Fault::ServiceUnavailable,
        "hang" => Fault::Hang,
        "garbage" => Fault::Garbage,
        "huge-body" => Fault::HugeBody,
        "not-found" => Fault::NotFound,
        "forbidden" => Fault::Forbidden,
        "slow-drip" => Fault::SlowDrip,
        "reset" => Fault::Reset,
        "cut-off" => Fault::CutOff,
        "empty-data" => Fault::EmptyData,
        "no-token" => Fault::NoToken,
        "no-expiry" => Fault::NoExpiry,
        "token-not-base64" => Fault::TokenNotBase64,
        "token-without-colon" => Fault::TokenWithoutColon,
        "expired-token" => Fault::ExpiredToken,
        "no-proxy-endpoint" => Fault::NoProxyEndpoint,
        "absurd-lifetime" => Fault::AbsurdLifetime,
        "evil-proxy-endpoint" => Fault::EvilProxyEndpoint("https://registry.example.com".to_owned()),
        _ => return None,
    })
}

fn main() -> io::Result<()> {
    let cli = Cli::parse();
    let anchored = |path| {
        let arn = |name| format!("arn:aws:rolesanywhere:{}:{}:{name}/emulated", cli.region, cli.account);
        io::Result::Ok(RolesAnywhere {
            trust_anchor: arn("trust-anchor"),
            certificates: fs::read_to_string(path)?,
            profile: arn("profile"),
            roles: vec![format!("arn:aws:iam::{}:role/node", cli.account)],
            accepts_session_name: false,
        })
    };
    let roles_anywhere = cli.roles_anywhere_ca.as_ref().map(anchored).transpose()?;
    let option = roles_anywhere.as_ref().map(|known| {
        format!("anchor={},profile={},role={}", known.trust_anchor, known.profile, known.roles.concat())
    });
    let options = Options {
        port: cli.port,
        account: cli.account,
        imds_region: cli.region,
        token_lifetime: cli.token_lifetime,
        clock_offset: cli.clock_offset,
        roles_anywhere,
        tls: cli.tls_ca_file.is_some().then_some(cli.tls_name),
        ..Options::default()
    };
    let (container, web_identity) = (options.container_token.clone(), options.web_identity_token.clone());
    let emulator = Emulator::start(options)?;
    for Failure { api, region, fault, times } in cli.fail {
        match region {
            Some(region) => emulator.fail_in(&region, api, fault, times),
            None => emulator.fail(api, fault, times),
        }
    }

    let url = emulator.url();
    println!("# ecr-emulator listens on {url}; stop it with Ctrl-C. With an access key:");
    for (name, value) in emulator.environment() {
        println!("export {name}={value}");
    }
    if let Some(path) = &cli.tls_ca_file {
        File::create(path)?.write_all(emulator.ca_pem().as_bytes())?;
        println!("export AWS_CA_BUNDLE={}", path.display());
    }
    if let Some(option) = option {
        println!("# Or, instead of the key, with a certificate of the CA:");
        println!("#   ECR_NODE_AGENT_ROLES_ANYWHERE={option}");
    }
    println!("# Or, instead of the key, with an instance's role:");
    println!("#   AWS_EC2_METADATA_SERVICE_ENDPOINT={url}");
    println!("# or a container's:");
    println!("#   AWS_CONTAINER_CREDENTIALS_FULL_URI={url}/v1/credentials");
    println!("#   AWS_CONTAINER_AUTHORIZATION_TOKEN={}", container.unwrap_or_default());
    println!(
        "# or a web identity: AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE naming a file with {web_identity}"
    );
    let Some(path) = &cli.passwords_file else {
        loop {
            // Until a signal ends the process.
            thread::park();
        }
    };
    let mut passwords = File::options().create(true).append(true).mode(0o600).open(path)?;
    let mut told = 0;
    loop {
        for issued in emulator.issued().iter().skip(told) {
            // At once, so that a reader never sees a part of one.
            passwords.write_all(format!("{}\n", issued.password).as_bytes())?;
            told += 1;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
