//! The emulator, seen from a plain socket, so that no client's kindness hides what is on the wire.

use crate::{
    Api, Emulator, Fault, Issued, Options, Times,
    proxy::Proxy,
    server::Asked,
    signature::{Authorization, format_stamp, sign},
};
use axum::http::Request;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const ROLE: &str = "arn:aws:iam::123456789012:role/puller";
const ECR: [&str; 2] = ["x-amz-target", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"];
const PUBLIC: [&str; 2] = ["x-amz-target", "SpencerFrontendService.GetAuthorizationToken"];

fn start() -> Emulator {
    Emulator::start(Options::default()).unwrap()
}

/// An answer, taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let line =
            self.head.lines().find(|line| line.split(':').next().unwrap().eq_ignore_ascii_case(name))?;
        Some(line.split_once(':').unwrap().1.trim())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The text of an XML element.
    fn element(&self, name: &str) -> &str {
        let (_, rest) = self.body.split_once(&format!("<{name}>")).unwrap();
        rest.split_once(&format!("</{name}>")).unwrap().0
    }
}

/// Sends one request and reads until the other side closes. The `Host` is made up, as behind a proxy.
fn exchange(port: u16, method: &str, target: &str, headers: &[[&str; 2]], body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let lines: Vec<_> = headers.iter().map(|[name, value]| format!("{name}: {value}\r\n")).collect();
    let lines = lines.concat();
    let length = body.len();
    stream.write_all(
        format!("{method} {target} HTTP/1.1\r\nhost: aws.example\r\nconnection: close\r\ncontent-length: {length}\r\n{lines}\r\n{body}")
            .as_bytes(),
    )?;
    let mut bytes = Vec::new();
    let mut piece = [0; 1 << 14];
    // In all, and not for each read: an answer that drips would come to its end after forty minutes.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match stream.read(&mut piece)? {
            0 => break,
            count => bytes.extend_from_slice(&piece[..count]),
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

fn ask(aws: &Emulator, method: &str, target: &str, headers: &[[&str; 2]], body: &str) -> Answer {
    exchange(aws.port(), method, target, headers, body).unwrap()
}

/// Who signs, when, and for what.
#[derive(Debug, Clone)]
struct Signer<'a> {
    key: &'a str,
    secret: &'a str,
    session_token: Option<&'a str>,
    region: &'a str,
    service: &'a str,
    at: Timestamp,
}

fn signer(aws: &Emulator) -> Signer<'static> {
    Signer {
        key: KEY,
        secret: SECRET,
        session_token: None,
        region: "eu-west-1",
        service: "ecr",
        at: aws.now(),
    }
}

/// The headers of a signed `POST /`.
fn signed(signer: &Signer<'_>, body: &str) -> Vec<[String; 2]> {
    let stamp = format_stamp(signer.at);
    let authorization = Authorization {
        access_key: signer.key,
        date: &stamp[..8],
        region: signer.region,
        service: signer.service,
        signed_headers: "host;x-amz-date",
        signature: "",
    };
    let request = Request::post("/").header("host", "aws.example").header("x-amz-date", &stamp);
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let signature = sign(signer.secret, &authorization, &Asked { parts, body: body.to_owned().into() });
    let Authorization { access_key, date, region, service, signed_headers, .. } = authorization;
    let credential = format!("{access_key}/{date}/{region}/{service}/aws4_request");
    let header = format!(
        "AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed_headers}, Signature={signature}"
    );
    let mut headers = vec![["authorization".to_owned(), header], ["x-amz-date".to_owned(), stamp]];
    headers.extend(signer.session_token.map(|token| ["x-amz-security-token".to_owned(), token.to_owned()]));
    headers
}

fn call(aws: &Emulator, signer: &Signer<'_>, target: Option<[&str; 2]>, body: &str) -> io::Result<Answer> {
    let headers = signed(signer, body);
    let mut headers: Vec<_> = headers.iter().map(|[name, value]| [name.as_str(), value.as_str()]).collect();
    headers.extend(target);
    exchange(aws.port(), "POST", "/", &headers, body)
}

/// A good call of private ECR.
fn token(aws: &Emulator) -> io::Result<Answer> {
    call(aws, &signer(aws), Some(ECR), "{}")
}

fn manifest(aws: &Emulator, password: &str) -> Answer {
    let basic = format!("Basic {}", STANDARD.encode(format!("AWS:{password}")));
    ask(aws, "GET", "/v2/team/app/manifests/latest", &[["authorization", &basic]], "")
}

#[test]
fn signatures_are_those_of_the_published_examples() {
    // From AWS's signature test suite: `get-vanilla`, `get-vanilla-query`, `post-vanilla`, and its form with a body.
    let cases = [
        (
            "GET",
            "/",
            "",
            "host;x-amz-date",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "GET",
            "/?Param2=value2&Param1=value1",
            "",
            "host;x-amz-date",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (
            "POST",
            "/",
            "",
            "host;x-amz-date",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            "POST",
            "/",
            "Param1=value1",
            "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
            "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
        ),
    ];
    for (method, uri, body, signed_headers, signature) in cases {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "example.amazonaws.com")
            .header("content-type", "application/x-www-form-urlencoded")
            .header("content-length", "13")
            .header(
                "x-amz-content-sha256",
                "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
            )
            .header("x-amz-date", "20150830T123600Z");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let header = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders={signed_headers}, Signature={signature}"
        );
        let authorization = Authorization::parse(&header).unwrap();
        let got = sign(
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            &authorization,
            &Asked { parts, body: body.into() },
        );
        assert_eq!(got, signature, "{method} {uri} {body:?}");
    }
}

#[test]
fn an_authorization_header_with_a_part_missing_is_none() {
    let good = format!(
        "AWS4-HMAC-SHA256 Credential=A/20261123/r/ecr/aws4_request,SignedHeaders=host, Signature={}",
        "0".repeat(64)
    );
    assert!(Authorization::parse(&good).is_some());
    let spoilt = [
        ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
        ("A/", "/"),
        ("20261123", "2026112"),
        ("aws4_request", "aws4"),
        ("aws4_request", "aws4_request/x"),
        ("SignedHeaders=host", "SignedHeaders="),
        ("Signature=0", "Signature=x"),
        ("Signature=0", "Signature="),
        ("Credential=", "Who="),
    ];
    for (from, to) in spoilt {
        assert_eq!(Authorization::parse(&good.replacen(from, to, 1)), None, "{from} -> {to}");
    }
}

#[test]
fn ecr_answers_a_signed_call_with_a_token_of_its_own() {
    let aws = start();
    let answer = token(&aws).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/x-amz-json-1.1"));
    assert!(answer.header("x-amzn-requestid").is_some() && answer.header("date").is_some());

    let data = &answer.json()["authorizationData"][0];
    let text = data["authorizationToken"].as_str().unwrap();
    assert_eq!(text.len(), 2504);
    let plain = String::from_utf8(STANDARD.decode(text).unwrap()).unwrap();
    assert!(plain.starts_with("AWS:") && plain.contains("SECRETPASSWORD"));
    assert_eq!(data["proxyEndpoint"], "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com");

    let Issued { token_base64, password, region, role, expires_at } = aws.issued().remove(0);
    assert_eq!((token_base64.as_str(), plain.as_str()), (text, format!("AWS:{password}").as_str()));
    assert_eq!((region.as_str(), role), ("eu-west-1", None));
    assert!((data["expiresAt"].as_f64().unwrap() - expires_at.as_duration().as_secs_f64()).abs() < 0.001);
    assert!(aws.secrets().contains(&token_base64) && aws.secrets().contains(&password));

    let again = call(&aws, &Signer { region: "cn-north-1", ..signer(&aws) }, Some(ECR), "{}").unwrap();
    let again = &again.json()["authorizationData"][0];
    assert_eq!(again["proxyEndpoint"], "https://123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn");
    assert_ne!(again["authorizationToken"], *text);

    let seen: Vec<_> =
        aws.calls().into_iter().map(|call| (call.api, call.region, call.access_key, call.host)).collect();
    let expected = ["eu-west-1", "cn-north-1"]
        .map(|r| (Api::Ecr, r.to_owned(), KEY.to_owned(), "aws.example".to_owned()));
    assert_eq!(seen, expected);
}

#[test]
fn ecr_public_answers_with_an_object_and_only_in_its_one_region() {
    let aws = start();
    let there = Signer { region: "us-east-1", service: "ecr-public", ..signer(&aws) };
    let answer = call(&aws, &there, Some(PUBLIC), "{}").unwrap().json();
    assert!(answer["authorizationData"]["authorizationToken"].is_string());
    assert!(answer["authorizationData"]["proxyEndpoint"].is_null());
    let elsewhere = Signer { region: "eu-west-1", ..there };
    assert_eq!(call(&aws, &elsewhere, Some(PUBLIC), "{}").unwrap().status, 400);
}

#[test]
fn a_call_that_is_not_signed_well_is_refused_in_the_words_of_the_service() {
    let aws = start();
    let good = signer(&aws);
    let minutes = |count| good.at + SignedDuration::from_mins(count);
    let cases = [
        (
            Signer { secret: "wrong", ..good.clone() },
            "InvalidSignatureException",
            "does not match the signature you",
        ),
        (
            Signer { key: "AKIAUNKNOWN", ..good.clone() },
            "UnrecognizedClientException",
            "token included in the request",
        ),
        (Signer { service: "sts", ..good.clone() }, "InvalidSignatureException", "correct service: 'ecr'"),
        (Signer { session_token: Some("x"), ..good.clone() }, "UnrecognizedClientException", "is invalid"),
        (Signer { at: minutes(-6), ..good.clone() }, "InvalidSignatureException", "Signature expired: "),
        (
            Signer { at: minutes(6), ..good.clone() },
            "InvalidSignatureException",
            "Signature not yet current: ",
        ),
    ];
    for (signer, code, message) in cases {
        let answer = call(&aws, &signer, Some(ECR), "{}").unwrap();
        let json = answer.json();
        assert_eq!((answer.status, &json["__type"]), (400, &Value::from(code)), "{signer:?}: {json}");
        assert!(json["message"].as_str().unwrap().contains(message), "{signer:?}: {json}");
    }
    let unsigned = ask(&aws, "POST", "/", &[ECR], "{}").json();
    assert_eq!(unsigned["__type"], "MissingAuthenticationTokenException");
    assert!(aws.issued().is_empty());
    assert_eq!(aws.count(Api::Ecr), 7);

    aws.set_clock_offset(SignedDuration::from_mins(-6));
    let late = call(&aws, &Signer { at: minutes(-6), ..good }, Some(ECR), "{}").unwrap();
    assert_eq!(late.status, 200, "the emulator's clock is what counts");
}

#[test]
fn sts_hands_out_credentials_that_ecr_knows_with_their_role() {
    let aws = start();
    let body = format!(
        "Action=AssumeRole&Version=2011-06-15&RoleArn={ROLE}&RoleSessionName=test&DurationSeconds=900"
    );
    let sts = Signer { service: "sts", ..signer(&aws) };
    let answer = call(&aws, &sts, None, &body).unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/xml")), "{answer:?}");
    assert!(
        answer.body.starts_with("<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">")
    );
    assert_eq!(answer.element("Arn"), "arn:aws:sts::123456789012:assumed-role/puller/test");

    let assumed = Signer {
        key: answer.element("AccessKeyId"),
        secret: answer.element("SecretAccessKey"),
        session_token: Some(answer.element("SessionToken")),
        ..signer(&aws)
    };
    assert_eq!(call(&aws, &assumed, Some(ECR), "{}").unwrap().status, 200);
    assert_eq!(aws.calls()[1].role.as_deref(), Some(ROLE));
    assert_eq!(aws.issued()[0].role.as_deref(), Some(ROLE));

    let alone = Signer { session_token: None, ..assumed.clone() };
    let refused = call(&aws, &alone, Some(ECR), "{}").unwrap().json();
    assert_eq!(refused["__type"], "UnrecognizedClientException");

    aws.set_clock_offset(SignedDuration::from_mins(16));
    let late = Signer { at: aws.now(), ..assumed };
    assert_eq!(call(&aws, &late, Some(ECR), "{}").unwrap().json()["__type"], "ExpiredTokenException");
}

#[test]
fn sts_refuses_in_xml() {
    let aws = start();
    let body = |token: &str| {
        format!(
            "Action=AssumeRoleWithWebIdentity&RoleArn={ROLE}&RoleSessionName=test&WebIdentityToken={token}"
        )
    };
    let good = ask(&aws, "POST", "/", &[], &body("emulated.web.identity"));
    assert_eq!(good.status, 200, "{good:?}");
    assert!(good.element("AccessKeyId").starts_with("ASIA"));

    let bad = ask(&aws, "POST", "/", &[], &body("another"));
    assert_eq!((bad.status, bad.element("Code")), (400, "InvalidIdentityToken"));
    let stranger = Signer { key: "AKIAUNKNOWN", service: "sts", ..signer(&aws) };
    let bad = call(&aws, &stranger, None, "Action=AssumeRole").unwrap();
    assert_eq!((bad.status, bad.element("Code")), (403, "InvalidClientTokenId"));
    aws.fail(Api::AssumeRole, Fault::error(403, "AccessDenied", "a < b"), Times::Always);
    let told = call(&aws, &signer(&aws), None, "Action=AssumeRole").unwrap();
    assert_eq!((told.element("Code"), told.element("Message")), ("AccessDenied", "a &lt; b"));
}

#[test]
fn the_metadata_service_wants_a_session_before_it_tells_anything() {
    let aws = start();
    let credentials = "/latest/meta-data/iam/security-credentials/";
    assert_eq!(ask(&aws, "GET", credentials, &[], "").status, 401);
    assert_eq!(ask(&aws, "PUT", "/latest/api/token", &[], "").status, 400);

    let session =
        ask(&aws, "PUT", "/latest/api/token", &[["x-aws-ec2-metadata-token-ttl-seconds", "60"]], "");
    assert_eq!(session.header("x-aws-ec2-metadata-token-ttl-seconds"), Some("60"));
    let headers = [["x-aws-ec2-metadata-token", session.body.as_str()]];
    let get = |path: &str| ask(&aws, "GET", path, &headers, "");
    assert_eq!(get("/latest/meta-data/placement/region").body, "eu-west-1");
    assert_eq!(get(credentials).body, "node");
    assert_eq!(get(&format!("{credentials}other")).status, 404);
    assert_eq!(get("/latest/meta-data/iam/security-credentials-extended/node").json()["Code"], "Success");

    let lent = get(&format!("{credentials}node")).json();
    let signer = Signer {
        key: lent["AccessKeyId"].as_str().unwrap(),
        secret: lent["SecretAccessKey"].as_str().unwrap(),
        session_token: lent["Token"].as_str(),
        ..signer(&aws)
    };
    assert_eq!(call(&aws, &signer, Some(ECR), "{}").unwrap().status, 200);
    assert!(lent["Expiration"].as_str().unwrap().parse::<Timestamp>().is_ok());

    aws.fail(Api::ImdsCredentials, Fault::NotFound, Times::Always);
    assert_eq!(get(credentials).status, 404);
    aws.set_clock_offset(SignedDuration::from_secs(61));
    assert_eq!(get("/latest/meta-data/placement/region").status, 401);
}

#[test]
fn the_container_endpoint_wants_its_token() {
    let aws = start();
    for path in ["/v1/credentials", "/v2/credentials/some-id"] {
        assert_eq!(ask(&aws, "GET", path, &[], "").status, 401);
        let lent =
            ask(&aws, "GET", path, &[["authorization", "emulated-container-authorization"]], "").json();
        let id = lent["AccessKeyId"].as_str().unwrap();
        assert!(id.len() == 20 && id.starts_with("ASIA"), "{lent}");
        assert!(aws.secrets().contains(&lent["SecretAccessKey"].as_str().unwrap().to_owned()));
    }
}

#[test]
fn the_registry_opens_to_a_token_until_it_expires() {
    let aws = start();
    let closed = ask(&aws, "GET", "/v2/", &[], "");
    let challenge = "Basic realm=\"https://aws.example/\",service=\"ecr.amazonaws.com\"";
    assert_eq!((closed.status, closed.header("www-authenticate")), (401, Some(challenge)));

    token(&aws).unwrap();
    let first = aws.issued().remove(0);
    let open = manifest(&aws, &first.password);
    assert_eq!((open.status, open.header("docker-distribution-api-version")), (200, Some("registry/2.0")));
    assert!(open.header("docker-content-digest").unwrap().starts_with("sha256:"));
    assert_eq!(open.json()["schemaVersion"], 2);
    assert_eq!(manifest(&aws, "guessed").status, 401);

    aws.expire_all();
    assert_eq!(manifest(&aws, &first.password).status, 401);
    token(&aws).unwrap();
    let second = aws.issued().remove(1);
    assert_eq!(manifest(&aws, &second.password).status, 200);
    aws.set_clock_offset(SignedDuration::from_hours(12));
    assert_eq!(manifest(&aws, &second.password).status, 401);
}

#[test]
fn faults_meet_their_region_their_number_of_calls_and_no_more() {
    let aws = start();
    aws.fail(Api::Ecr, Fault::Throttle, Times::First(1));
    aws.fail_in("eu-west-1", Api::Ecr, Fault::access_denied(), Times::First(1));
    let codes: Vec<_> = (0..3).map(|_| token(&aws).unwrap().json()["__type"].clone()).collect();
    assert_eq!(
        codes,
        [Value::from("AccessDeniedException"), Value::from("ThrottlingException"), Value::Null]
    );

    aws.fail(Api::Ecr, Fault::ServiceUnavailable, Times::Always);
    let down = token(&aws).unwrap();
    assert_eq!((down.status, down.header("content-type")), (503, Some("text/html")));
    assert_eq!(aws.calls()[3].fault, Some(Fault::ServiceUnavailable));
    aws.heal();
    assert_eq!(token(&aws).unwrap().status, 200);
}

#[test]
fn spoilt_data_is_spoilt_in_one_place() {
    let aws = start();
    let with = |fault: Fault| {
        aws.fail(Api::Ecr, fault, Times::Always);
        token(&aws).unwrap().json()["authorizationData"].clone()
    };
    assert_eq!(with(Fault::EmptyData), Value::Array(vec![]));
    for (fault, key) in [
        (Fault::NoToken, "authorizationToken"),
        (Fault::NoExpiry, "expiresAt"),
        (Fault::NoProxyEndpoint, "proxyEndpoint"),
    ] {
        let data = with(fault);
        assert!(data[0].get(key).is_none() && data[0].as_object().unwrap().len() == 2, "{data}");
    }
    let decoded = |data: &Value| STANDARD.decode(data[0]["authorizationToken"].as_str().unwrap());
    assert!(decoded(&with(Fault::TokenNotBase64)).is_err());
    assert!(!decoded(&with(Fault::TokenWithoutColon)).unwrap().contains(&b':'));
    let expires_at = with(Fault::ExpiredToken)[0]["expiresAt"].as_f64().unwrap();
    assert!(expires_at < aws.now().as_duration().as_secs_f64());
    assert_eq!(with(Fault::EvilProxyEndpoint("file:///x".to_owned()))[0]["proxyEndpoint"], "file:///x");
}

#[test]
fn connections_break_as_told_and_stopping_waits_for_none() {
    let aws = start();
    let with = |fault: Fault| {
        aws.fail(Api::Ecr, fault, Times::Always);
        token(&aws)
    };
    assert_eq!(with(Fault::Reset).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let cut = with(Fault::CutOff).unwrap();
    let promised: usize = cut.header("content-length").unwrap().parse().unwrap();
    assert!(!cut.body.is_empty() && cut.body.len() < promised, "{} of {promised}", cut.body.len());
    assert!(serde_json::from_str::<Value>(&with(Fault::Garbage).unwrap().body).is_err());
    assert!(with(Fault::HugeBody).unwrap().body.len() > 100 << 20);
    assert_eq!(with(Fault::Hang).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(with(Fault::SlowDrip).unwrap_err().kind(), io::ErrorKind::TimedOut);

    // One connection that hangs is left open.
    aws.fail(Api::Ecr, Fault::Hang, Times::Always);
    let mut hanging = TcpStream::connect(aws.address()).unwrap();
    hanging
        .write_all(format!("POST / HTTP/1.1\r\nhost: x\r\n{}: {}\r\n\r\n", ECR[0], ECR[1]).as_bytes())
        .unwrap();
    let before = Instant::now();
    drop(aws);
    // A connection that hangs holds up nothing: it would for ever, whatever else the machine does.
    assert!(before.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_is_unknown_is_said_and_not_counted() {
    let aws = start();
    let answer = ask(&aws, "GET", "/latest/user-data", &[], "");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("GET /latest/user-data"), "{answer:?}");
    assert!(aws.calls().is_empty());
}

#[test]
fn the_proxy_leads_here_and_remembers_what_was_asked() {
    let aws = start();
    let proxy = Proxy::start(aws.address(), Some(("user", "pass"))).unwrap();
    let basic = format!("Basic {}", STANDARD.encode("user:pass"));
    let login = [["proxy-authorization", basic.as_str()]];

    let target = "http://ecr.eu-west-1.amazonaws.com/v2/";
    assert_eq!(exchange(proxy.port(), "GET", target, &[], "").unwrap().status, 407);
    assert_eq!(exchange(proxy.port(), "GET", target, &login, "").unwrap().status, 401);

    let mut tunnel = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let connect = format!("CONNECT sts.amazonaws.com:443 HTTP/1.1\r\nproxy-authorization: {basic}\r\n\r\n");
    tunnel.write_all(connect.as_bytes()).unwrap();
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let mut answer = vec![0; established.len()];
    tunnel.read_exact(&mut answer).unwrap();
    assert_eq!(answer, established);
    tunnel.write_all(b"GET /v2/ HTTP/1.1\r\nhost: sts.amazonaws.com\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    tunnel.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 401 "), "{text}");

    assert_eq!(proxy.requests(), ["ecr.eu-west-1.amazonaws.com:80", "sts.amazonaws.com:443"]);
    assert_eq!(proxy.refused(), 1);
    let hosts: Vec<_> = aws.calls().into_iter().map(|call| call.host).collect();
    assert_eq!(hosts, ["aws.example", "sts.amazonaws.com"]);
}

/// A client that trusts the CA it was given, and nothing else.
fn tls_get(aws: &Emulator, name: &'static str) -> io::Result<String> {
    use tokio_rustls::rustls::{
        ClientConfig, ClientConnection, RootCertStore, StreamOwned,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(aws.ca_pem().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = ClientConnection::new(config.into(), ServerName::try_from(name).unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, TcpStream::connect(aws.address())?);
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn tls_serves_the_names_it_was_given() {
    let names = vec!["*.amazonaws.com".to_owned(), "api.ecr.eu-west-1.amazonaws.com".to_owned()];
    let aws = Emulator::start(Options { tls: Some(names), ..Options::default() }).unwrap();
    assert!(aws.url().starts_with("https://localhost:"));
    // A client that connects and says nothing keeps nobody waiting.
    let _silent = TcpStream::connect(aws.address()).unwrap();
    for name in ["localhost", "127.0.0.1", "sts.amazonaws.com", "api.ecr.eu-west-1.amazonaws.com"] {
        assert!(tls_get(&aws, name).unwrap().starts_with("HTTP/1.1 401 "), "{name}");
    }
    assert!(tls_get(&aws, "example.com").is_err());
}
