//! Compares with the kubelet's own code which credentials a docker config holds for an image.
//!
//! `tests/kubernetes/build` compiles that code, for each Kubernetes version that is pinned there. The cases are the vectors,
//! and generated ones: documents, keys and images that nearly match, and damaged ones. `ECR_NODE_AGENT_SEED` selects other
//! cases than those of CI.

use super::needs::{Need, all_here, tell};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_node_agent::docker_config::image::Image;
use ecr_node_agent::docker_config::keyring::Keyring;
use ecr_node_agent::docker_config::parse::{self, ParseError, Shape};
use fastrand::Rng;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The modules under `tests/kubernetes`: the oldest kubelet and the newest.
pub const VERSIONS: [&str; 2] = ["v1.29", "v1.37"];
const CASES: u32 = 100_000;
const SEED: u64 = 20_261_124;

/// A file and an image.
#[derive(Debug, Clone)]
struct Case {
    bytes: Vec<u8>,
    shape: Shape,
    /// A name as in a pod, or one that is looked up as it is.
    asked: Asked,
}

#[derive(Debug, Clone)]
enum Asked {
    Image(String),
    Name(String),
}

/// The result for a case, from this program or from a kubelet.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    accepted: bool,
    /// The name that was looked up; `None` if the image's name is refused.
    name: Option<String>,
    /// User and password of each credential. Those of one group come in any order, and are sorted here.
    found: Vec<Vec<(String, String)>>,
}

/// What was compared.
#[derive(Debug, Default)]
struct Counts {
    cases: u32,
    accepted: u32,
    names_refused: u32,
    with_a_credential: u32,
    with_several: u32,
    not_to_carry: u32,
}

pub fn is_here() -> bool {
    VERSIONS.iter().all(|version| program(version).is_file())
}

fn program(version: &str) -> PathBuf {
    PathBuf::from(super::cluster::PROGRAMS).join(format!("oracle-{version}"))
}

/// A case, this program's result, and the question for the kubelets.
struct Prepared {
    case: Case,
    ours: Answer,
    /// How many credentials are in each group whose order is random.
    groups: Vec<usize>,
    question: String,
}

/// Asks the kubelet of a version about each case, and hands its answers to `compare`.
fn judge(version: &str, cases: &[Prepared], mut compare: impl FnMut(&Prepared, &Answer)) {
    let mut child =
        Command::new(program(version)).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut questions = BufWriter::with_capacity(1 << 20, child.stdin.take().unwrap());
    let answers = child.stdout.take().unwrap();
    std::thread::scope(|scope| {
        // Closed at the end of this scope, also where a comparison fails: otherwise the program would wait for a reader, and the thread
        // for the program.
        let mut answers = BufReader::with_capacity(1 << 20, answers).lines();
        scope.spawn(move || {
            for case in cases {
                writeln!(questions, "{}", case.question).unwrap();
            }
        });
        for case in cases {
            let said: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
            compare(case, &Answer::of_the_kubelet(&said, &case.groups));
        }
    });
    assert!(child.wait().unwrap().success());
}

impl Case {
    fn prepare(self) -> Prepared {
        let (ours, groups) = self.ours();
        let question = self.question().to_string();
        Prepared { case: self, ours, groups, question }
    }

    fn question(&self) -> Value {
        let (image, name) = match &self.asked {
            Asked::Image(image) => (Some(image.as_str()), ""),
            Asked::Name(name) => (None, name.as_str()),
        };
        let legacy = self.shape == Shape::Legacy;
        json!({ "document": STANDARD.encode(&self.bytes), "legacy": legacy, "image": image, "name": name })
    }

    /// This program's result, and how many credentials are in each group whose order is random.
    fn ours(&self) -> (Answer, Vec<usize>) {
        let name = match &self.asked {
            Asked::Image(image) => image.parse::<Image>().ok().map(|image| image.repository()),
            Asked::Name(name) => Some(name.clone()),
        };
        let keyring = Keyring::read(&self.bytes, self.shape);
        let accepted = keyring.is_ok();
        let (Ok(keyring), Some(looked_up)) = (keyring, &name) else {
            return (Answer { accepted, name, found: Vec::new() }, Vec::new());
        };
        let tried = keyring.look_up_name(looked_up).tried;
        let groups: Vec<_> = tried.chunk_by(|a, b| a.is_filed_with(b)).collect();
        let sizes = groups.iter().map(|group| group.len()).collect();
        let found = groups.into_iter().map(|group| {
            let credential = |entry: &&ecr_node_agent::docker_config::keyring::Entry| {
                let password = entry.credentials.password.expose_secret().to_owned();
                (entry.credentials.username.clone(), password)
            };
            sorted(group.iter().map(credential).collect())
        });
        (Answer { accepted, name, found: found.collect() }, sizes)
    }

    /// Whether Go 1.26, and so the newest kubelet, refuses the name that an older one looked up: one with two colons outside
    /// brackets. An image has no such name, and a key with two matches no other.
    fn has_more_colons_than_an_image(&self) -> bool {
        let Asked::Name(name) = &self.asked else { return false };
        name.split('/').next().is_some_and(|host| host.matches(':').count() > 1)
    }

    /// Whether the kubelet accepts the file and the agent would not write it again. Fails if the merge judges it otherwise.
    fn is_not_to_carry(&self, accepted: bool) -> bool {
        let parsed = match self.shape {
            Shape::DockerConfig => parse::parse(&self.bytes),
            Shape::Legacy => parse::parse_legacy(&self.bytes),
        };
        match parsed {
            Ok(parsed) => assert_eq!(parsed.defects.is_empty(), accepted, "{self:?}"),
            Err(ParseError::Invalid(why)) => assert!(!accepted, "{why}: {self:?}"),
            Err(ParseError::CannotPreserve(why)) => {
                assert!(accepted, "{why}: {self:?}");
                return true;
            }
        }
        false
    }
}

impl Answer {
    fn of_the_kubelet(said: &Value, groups: &[usize]) -> Self {
        let mut credentials = said["found"].as_array().unwrap().iter().map(|pair| {
            let text = |at: usize| pair[at].as_str().unwrap().to_owned();
            (text(0), text(1))
        });
        let mut found: Vec<_> =
            groups.iter().map(|size| sorted(credentials.by_ref().take(*size).collect())).collect();
        // Credentials that this program has not found.
        let rest: Vec<_> = credentials.collect();
        if !rest.is_empty() {
            found.push(rest);
        }
        let name = said["name"].as_str().map(str::to_owned);
        Self { accepted: said["accepted"].as_bool().unwrap(), name, found }
    }

    fn count(&self) -> usize {
        self.found.iter().map(Vec::len).sum()
    }
}

fn sorted(mut credentials: Vec<(String, String)>) -> Vec<(String, String)> {
    credentials.sort();
    credentials
}

pub fn seed() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let seed = std::env::var("ECR_NODE_AGENT_SEED");
    seed.map_or(SEED, |seed| seed.parse().expect("ECR_NODE_AGENT_SEED is no number"))
}

#[test]
fn the_kubelet_finds_the_credentials_that_we_predict() {
    if !all_here(&[Need::Oracle]) {
        return;
    }
    let seed = seed();
    let start = Instant::now();
    let mut world = World { rng: Rng::with_seed(seed), users: 0 };
    let cases: Vec<_> = (0..CASES).map(|_| world.case().prepare()).collect();
    let ours = start.elapsed().as_secs_f64();
    std::thread::scope(|scope| {
        for version in VERSIONS {
            let cases = &cases;
            scope.spawn(move || compare(version, cases, &format!("seed {seed}"), start));
        }
    });
    tell(&format!(
        "oracle: {CASES} cases with seed {seed}: {ours:.1} s to make them and to answer them ourselves, {:.1} s with both kubelets",
        start.elapsed().as_secs_f64()
    ));
}

fn compare(version: &str, cases: &[Prepared], seed: &str, start: Instant) {
    let (mut counts, mut disagreements) = (Counts::default(), 0);
    judge(version, cases, |Prepared { case, ours, .. }, theirs| {
        counts.cases += 1;
        counts.accepted += u32::from(theirs.accepted);
        counts.names_refused += u32::from(theirs.name.is_none());
        counts.with_a_credential += u32::from(theirs.count() > 0);
        counts.with_several += u32::from(theirs.count() > 1);
        counts.not_to_carry += u32::from(case.is_not_to_carry(theirs.accepted));
        if ours != theirs && !(version == VERSIONS[0] && case.has_more_colons_than_an_image()) {
            disagreements += 1;
            if disagreements <= 20 {
                let (document, asked, shape) =
                    (String::from_utf8_lossy(&case.bytes), &case.asked, case.shape);
                tell(&format!(
                    "{version}, {shape:?} {asked:?}\n  {document:?}\n  ours    {ours:?}\n  theirs  {theirs:?}"
                ));
            }
        }
    });
    tell(&format!(
        "oracle {version}: {} cases with {seed} after {:.1} s: {} files accepted, {} image names refused, {} with a \
         credential, {} with several; {} files ({:.1} %) that it accepts and we only read",
        counts.cases,
        start.elapsed().as_secs_f64(),
        counts.accepted,
        counts.names_refused,
        counts.with_a_credential,
        counts.with_several,
        counts.not_to_carry,
        f64::from(counts.not_to_carry) * 100.0 / f64::from(counts.cases),
    ));
    assert_eq!(disagreements, 0, "{version} with {seed}");
    // Otherwise the cases would cover too little.
    assert!(counts.accepted > CASES / 2 && counts.accepted < CASES * 9 / 10, "{counts:?}");
    assert!(counts.with_a_credential > CASES / 5, "{counts:?}");
    assert!(counts.with_several > CASES / 20, "{counts:?}");
    assert!(counts.names_refused > CASES / 50, "{counts:?}");
    assert!(counts.not_to_carry < CASES / 20, "{counts:?}");
}

/// Cases in which an earlier version differed from the kubelet: description, file, image, and the users that are tried.
const ONCE_DIFFERENT: [(&str, Shape, &str, &str, &[&str]); 10] = [
    (
        "white space that JSON does not know",
        Shape::Legacy,
        "\u{a0}{\"a.b\":{\"username\":\"u\"}}",
        "a.b/app",
        &[],
    ),
    (
        "a malformed fragment",
        Shape::DockerConfig,
        r#"{"auths":{"a.b#%zz":{"username":"u"}}}"#,
        "a.b/app",
        &[],
    ),
    (
        "a control character in a fragment",
        Shape::DockerConfig,
        r#"{"auths":{"a.b#\u007f":{"username":"u"}}}"#,
        "a.b/app",
        &["u"],
    ),
    (
        "brackets around no address",
        Shape::DockerConfig,
        r#"{"auths":{"[:*1]:5000":{"username":"u"}}}"#,
        "[::1]:5000/app",
        &[],
    ),
    (
        "an address without a port is a class of characters",
        Shape::DockerConfig,
        r#"{"auths":{"[::1]":{"username":"u"}}}"#,
        "[::1]/app",
        &[],
    ),
    (
        "an address with a port is one",
        Shape::DockerConfig,
        r#"{"auths":{"[::1]:5000":{"username":"u"}}}"#,
        "[::1]:5000/app",
        &["u"],
    ),
    (
        "a path is decoded once to be filed, and once more to be compared",
        Shape::DockerConfig,
        r#"{"auths":{"a.b/%2561pp":{"username":"u"}}}"#,
        "a.b/app",
        &["u"],
    ),
    (
        "a character cut off is a U+FFFD for each byte",
        Shape::DockerConfig,
        r#"{"auths":{"a.b":{"auth":"deKCOnA="}}}"#,
        "a.b/app",
        &["u\u{fffd}\u{fffd}"],
    ),
    (
        "`auths` twice are one, unless the second is null",
        Shape::DockerConfig,
        r#"{"auths":{"a.b":{"username":"u"}},"auths":{"a.b/app":{"username":"v"}}}"#,
        "a.b/app",
        &["v", "u"],
    ),
    (
        "an exact host goes before a glob with a longer path",
        Shape::DockerConfig,
        r#"{"auths":{"*.b/app":{"username":"v"},"a.b":{"username":"u"}}}"#,
        "a.b/app",
        &["u", "v"],
    ),
];

#[test]
fn differences_that_were_fixed_do_not_come_back() {
    let cases = ONCE_DIFFERENT.map(|(what, shape, document, image, users)| {
        let bytes = document.as_bytes().to_vec();
        let case = Case { bytes, shape, asked: Asked::Image(image.to_owned()) }.prepare();
        let found: Vec<_> = case.ours.found.iter().flatten().map(|(user, _)| user.as_str()).collect();
        assert_eq!(found, users, "{what}");
        case
    });
    if all_here(&[Need::Oracle]) {
        for version in VERSIONS {
            judge(version, &cases, |case, theirs| {
                assert_eq!(case.ours, *theirs, "{version}: {:?}", case.case);
            });
        }
    }
}

#[test]
fn the_vectors_are_the_kubelets_own_answers() {
    if !all_here(&[Need::Oracle]) {
        return;
    }
    let case = |(document, name): (String, String)| {
        Case { bytes: document.into_bytes(), shape: Shape::DockerConfig, asked: Asked::Name(name) }.prepare()
    };
    let cases: Vec<_> = super::vectors::matching().into_iter().map(case).collect();
    for version in VERSIONS {
        judge(version, &cases, |case, theirs| assert_eq!(case.ours, *theirs, "{version}: {:?}", case.case));
        tell(&format!("oracle {version}: {} vectors", cases.len()));
    }
}

/// Generates cases. Each credential has its own user, so no two are confused.
struct World {
    rng: Rng,
    users: u32,
}

const HOSTS: [&str; 14] = [
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    "123456789012.dkr.ecr.us-east-1.amazonaws.com",
    "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
    "123456789012.dkr-ecr.eu-west-1.on.aws",
    "public.ecr.aws",
    "registry.example.com",
    "a.b",
    "localhost",
    "Registry",
    "10.0.0.1",
    "docker.io",
    "index.docker.io",
    "[::1]",
    "[fe80::1]",
];
const PORTS: [&str; 6] = ["", ":", ":443", ":0443", ":5000", ":65536"];
const PARTS: [&str; 10] = ["team", "team-b", "app", "a", "library", "nginx", "v1", "v2", "x__y", "z.9"];
const SCHEMES: [&str; 9] =
    ["https://", "http://", "HTTPS://", "Http://", "oci://", "//", "https:", "https:///", "http://https://"];
const TAILS: [&str; 15] = [
    "/", "//", "/v1/", "/v2/", "/v1", "/v2", "/v2/v1/", "?x=y", "?", "#", "#%zz", "#\u{7f}", "/%2561", "/%",
    " ",
];
/// Characters that are inserted into keys and names where they do not belong.
const ODD: [&str; 24] = [
    "*", "?", "[", "]", "[a]", "[!a]", "\\", "%41", "%2A", "%25", "%ff", "%zz", "@", ":", "::1", ".", "..",
    "\u{e9}", "\u{fffd}", "\n", "\u{7f}", " ", "A", "%",
];

impl World {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.usize(..of.len())]
    }

    fn is(&mut self, percent: u32) -> bool {
        self.rng.u32(..100) < percent
    }

    fn case(&mut self) -> Case {
        let (host, path) = self.name();
        let asked = self.asked(&host, &path);
        let legacy = self.is(15);
        let entries = self.entries(&host, &path);
        let mut bytes = if legacy { self.padded(&entries) } else { self.document(&entries) };
        if self.is(12) {
            self.damage(&mut bytes);
        }
        let shape = if legacy && !self.is(5) { Shape::Legacy } else { Shape::DockerConfig };
        Case { bytes, shape, asked }
    }

    /// Host and path of an image.
    fn name(&mut self) -> (String, String) {
        let host = self.one(&HOSTS).to_owned();
        let port = if self.is(20) { self.one(&PORTS) } else { "" };
        let parts = self.rng.usize(1..4);
        let path: Vec<_> = (0..parts).map(|_| self.one(&PARTS)).collect();
        (host + port, path.join("/"))
    }

    fn asked(&mut self, host: &str, path: &str) -> Asked {
        let mut name = if self.is(10) { path.to_owned() } else { format!("{host}/{path}") };
        if self.is(6) {
            self.disturb(&mut name);
        }
        if self.is(12) {
            return Asked::Name(name);
        }
        let end = match self.rng.u32(..12) {
            0..=3 => ":1.4".to_owned(),
            4 => ":".to_owned(),
            5 => format!("@sha256:{}", "0a".repeat(32)),
            6 => {
                let (algorithm, bytes) = *self
                    .rng
                    .choice(&[("sha512", 64), ("sha384", 48), ("sha1", 20), ("sha384", 49)])
                    .unwrap();
                format!(":x@{algorithm}:{}", "0a".repeat(bytes))
            }
            7 => format!("@sha256:{}", "0A".repeat(self.rng.usize(15..33))),
            _ => String::new(),
        };
        Asked::Image(name + &end)
    }

    /// Inserts something unusual into a text, removes something, or changes a letter's case.
    fn disturb(&mut self, text: &mut String) {
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let at = places.get(self.rng.usize(..places.len().max(1))).copied().unwrap_or_default();
        match self.rng.u32(..4) {
            0 if !text.is_empty() => drop(text.remove(at)),
            1 if text[at..].starts_with(|c: char| c.is_ascii_lowercase()) => {
                text[at..=at].make_ascii_uppercase();
            }
            _ => text.insert_str(at, self.one(&ODD)),
        }
    }

    /// A key that matches an image, or nearly.
    fn key(&mut self, host: &str, path: &str) -> String {
        let (name, port) = match host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            Some((name, port)) => (name, format!(":{port}")),
            None => (host, String::new()),
        };
        let mut name = match self.rng.u32(..20) {
            0 => self.one(&HOSTS).to_owned(),
            1 => "*".to_owned(),
            2 => "index.docker.io".to_owned(),
            _ => name.to_owned(),
        };
        if self.is(40) {
            let labels: Vec<String> = name.split('.').map(str::to_owned).collect();
            name = labels.into_iter().map(|label| self.glob(label)).collect::<Vec<_>>().join(".");
        }
        let port = if self.is(12) { self.one(&PORTS).to_owned() } else { port };
        let mut key = name + &port;
        if self.is(40) {
            // Not always at a slash: `h/team` also matches `h/team-b/x`.
            let cut = self.rng.usize(..=path.len());
            key = format!("{key}/{}", &path[..cut]);
        }
        if self.is(20) {
            key += self.one(&TAILS);
        }
        if self.is(20) {
            key.insert_str(0, self.one(&SCHEMES));
        }
        if self.is(4) {
            let at = key.find("://").map_or(0, |at| at + 3);
            key.insert_str(at, self.one(&["user@", "user:pw@", "us%65r:p@w@", "us er@", "%zz@", "@"]));
        }
        if self.is(8) {
            self.disturb(&mut key);
        }
        key
    }

    fn glob(&mut self, label: String) -> String {
        if label.is_empty() || !label.is_ascii() {
            return label;
        }
        let (from, to) = (self.rng.usize(..=label.len()), self.rng.usize(..=label.len()));
        match self.rng.u32(..6) {
            0 => "*".to_owned(),
            1 => format!("{}*", &label[..from]),
            2 => format!("*{}", &label[from..]),
            3 => format!("{}*{}", &label[..from.min(to)], &label[from.max(to)..]),
            _ => label,
        }
    }

    /// An object of entries, as text.
    fn entries(&mut self, host: &str, path: &str) -> String {
        let count = self.rng.usize(..6);
        let mut keys: Vec<String> = Vec::new();
        for _ in 0..count {
            let key = match keys.last() {
                Some(twice) if self.rng.u32(..100) < 5 => twice.clone(),
                _ => self.key(host, path),
            };
            keys.push(key);
        }
        let members: Vec<String> = keys
            .iter()
            .map(|key| {
                let (key, entry) = (self.string(key), self.entry());
                format!("{key}:{entry}")
            })
            .collect();
        format!("{{{}}}", members.join(","))
    }

    /// A JSON string, with some unnecessary escapes.
    fn string(&mut self, text: &str) -> String {
        if !self.is(5) {
            return Value::from(text).to_string();
        }
        let escaped: Vec<_> = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let escaped = escaped.concat();
        let odd =
            if self.is(10) { self.one(&["\\ud800", "\\udc00\\ud800", "\\ud83d\\ude00", "\\/"]) } else { "" };
        format!("\"{escaped}{odd}\"")
    }

    fn entry(&mut self) -> String {
        self.users += 1;
        let (user, password) =
            (format!("u{}", self.users), self.one(&["p", "", "a:b", "\u{e9}", "long enough"]));
        let plain =
            |user: &str| format!("{{\"username\":\"{user}\",\"password\":{}}}", Value::from(password));
        match self.rng.u32(..100) {
            0..=39 => {
                let auth = self.auth(&format!("{user}:{password}"));
                let name = self.field("auth");
                format!("{{{name}:{auth}}}")
            }
            40..=44 => format!("{{\"password\":{},\"username\":\"{user}\"}}", Value::from(password)),
            75..=79 => {
                let [username, secret] = ["username", "password"].map(|name| self.field(name));
                format!("{{{username}:\"x\",{username}:\"{user}\",{secret}:\"y\",{secret}:null}}")
            }
            80..=84 => {
                let auth = self.auth(&format!("{user}:{password}"));
                format!(
                    "{{\"username\":\"no\",\"password\":\"no\",\"email\":\"e\",\"auth\":{auth},\"x\":[1,{{\"y\":1e999}}]}}"
                )
            }
            85..=88 => "{}".to_owned(),
            89 => "null".to_owned(),
            90..=91 => "{\"identitytoken\":\"t\",\"registrytoken\":1}".to_owned(),
            92..=93 => format!("{{\"auth\":\"\",\"username\":\"{user}\"}}"),
            94 => format!("{{\"auth\":null,\"username\":\"{user}\"}}"),
            95 => {
                self.one(&["[]", "[{}]", "\"x\"", "1", "true", "{\"auth\":1}", "{\"email\":[]}"]).to_owned()
            }
            96 => "{\"auth\":\"eA==\"}".to_owned(),
            _ => plain(&user),
        }
    }

    /// A field's name, in one of the spellings that Go accepts.
    fn field(&mut self, name: &str) -> String {
        let name = match self.rng.u32(..20) {
            0 => name.to_uppercase(),
            1 => name.replace('s', "\u{17f}"),
            2 => name[..1].to_uppercase() + &name[1..],
            3 => name.replace('k', "\u{212a}"),
            _ => name.to_owned(),
        };
        self.string(&name)
    }

    /// The base64 of a text as a JSON string, correct or nearly.
    fn auth(&mut self, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        if self.is(3) {
            let at = self.rng.usize(..bytes.len());
            bytes[at] = self.rng.u8(..);
        }
        let padded = STANDARD.encode(&bytes);
        let unpadded = padded.trim_end_matches('=').to_owned();
        let auth = match self.rng.u32(..40) {
            0..=3 => unpadded,
            4 => format!("{}\\r\\n{}", &padded[..2], &padded[2..]),
            5 => format!("{padded}\\n"),
            6 => format!("{unpadded}\\n="),
            7 => format!("{padded}="),
            8 if padded.ends_with('=') => {
                // Non-zero trailing bits.
                let mut text = unpadded.clone();
                let last = text.pop().unwrap_or('A');
                format!("{text}{}{}", char::from(last as u8 + 1), &padded[unpadded.len()..])
            }
            9 => format!("{padded} "),
            10 => padded.replace('+', "-").replace('/', "_"),
            11 => format!("{padded}{padded}"),
            12 => format!("\\u00a0{padded}"),
            13 => format!("{unpadded}=\\n="),
            _ => padded,
        };
        format!("\"{auth}\"")
    }

    fn document(&mut self, entries: &str) -> Vec<u8> {
        let name = match self.rng.u32(..30) {
            0 => "AUTHS",
            1 => "auth\u{17f}",
            2 => "Auths",
            _ => "auths",
        };
        let mut members = vec![format!("{}:{entries}", self.string(name))];
        if self.is(2) {
            let again = self.one(&["{}", "null", "{\"a.b\":{\"username\":\"again\"}}", "[]"]);
            members.push(format!("\"auths\":{again}"));
        }
        if self.is(20) {
            let other = self.one(&[
                "\"HttpHeaders\":{\"User-Agent\":\"x\",\"y\":null}",
                "\"httpheaders\":null",
                "\"HttpHeaders\":{\"x\":1}",
                "\"credsStore\":\"ecr-login\"",
                "\"credHelpers\":{\"a.b\":1}",
                "\"x\":1e999",
                "\"x\":-0.5E+3",
                "\"x\":\"\\ud800\"",
                "\"\":[]",
                "\"auths \":1",
                "\"ecr-node-agent\":{\"version\":1}",
                "\"ecr-node-agent\":{\"version\":2}",
            ]);
            let at = self.rng.usize(..=members.len());
            members.insert(at, other.to_owned());
        }
        let text = format!("{{{}}}", members.join(","));
        self.padded(&text)
    }

    /// A text with white space around it, valid in JSON or not.
    fn padded(&mut self, text: &str) -> Vec<u8> {
        let space = |world: &mut Self| match world.rng.u32(..30) {
            0 => "\n",
            1 => " \t\r\n",
            2 if world.is(20) => "\u{a0}",
            3 if world.is(20) => "\u{b}",
            4 if world.is(20) => "\u{feff}",
            _ => "",
        };
        format!("{}{text}{}", space(self), space(self)).into_bytes()
    }

    /// Changes one byte or several.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.rng.usize(1..4) {
            let at = self.rng.usize(..=bytes.len());
            let to = self.rng.usize(at..=(at + 12).min(bytes.len()));
            match self.rng.u32(..8) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..to)),
                2 => {
                    let slice = bytes[at..to].to_vec();
                    bytes.splice(at..at, slice);
                }
                3 => bytes.insert(at, self.rng.u8(..)),
                4 => bytes.insert(at, b"{}[]\",:\\ \n0e"[self.rng.usize(..12)]),
                5 => {
                    let broken: [&[u8]; 5] =
                        [b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\x80"];
                    let broken = broken[self.rng.usize(..broken.len())];
                    // Mostly inside a string: anywhere else it is only another syntax error.
                    let rest = bytes.iter().skip(at).position(|byte| *byte == b'"');
                    let at = rest.map_or(at, |rest| at + rest + 1);
                    bytes.splice(at..at, broken.iter().copied());
                }
                _ if at < bytes.len() => bytes[at] ^= 1 << self.rng.u32(..8),
                _ => {}
            }
        }
    }
}
