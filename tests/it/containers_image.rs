//! CRI-O, podman, buildah and skopeo read the same file, by rules of their own. Their shared code is the judge here: what it
//! finds in a docker config for an image, and that the agent's writes change nothing else for it.
//!
//! `tests/kubernetes/build oracle` makes the judge, from the module that CRI-O itself is built of.

use crate::needs::{Need, all_here, tell};
use crate::node::{HOST, Node};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fastrand::Rng;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Documents for which the program runs.
const DOCUMENTS: u32 = 60;
const SEED: u64 = 20_261_125;

/// What the lookup returns for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Nothing,
    /// The user and the password.
    Credential(String, String),
    /// The file, or the entry that the lookup chose, is invalid.
    Refused,
}

pub fn is_here() -> bool {
    program().is_file()
}

fn program() -> PathBuf {
    PathBuf::from(crate::cluster::PROGRAMS).join("oracle-cri-o")
}

/// Asks the judge about pairs of a document and an image.
fn judge(questions: &[(String, &str)]) -> Vec<Found> {
    let mut child = Command::new(program()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = std::thread::scope(|scope| {
        scope.spawn(move || {
            for (document, image) in questions {
                let question = json!({ "document": STANDARD.encode(document), "image": image });
                writeln!(input, "{question}").unwrap();
            }
        });
        answers.map(|answer| found(&serde_json::from_str(&answer.unwrap()).unwrap())).collect::<Vec<_>>()
    });
    assert!(child.wait().unwrap().success());
    assert_eq!(found.len(), questions.len());
    found
}

fn found(answer: &Value) -> Found {
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    match (answer["refused"].is_string(), text("username"), text("password")) {
        (true, ..) => Found::Refused,
        (_, user, password) if user.is_empty() && password.is_empty() => Found::Nothing,
        (_, user, password) => Found::Credential(user, password),
    }
}

/// A document with these keys. The user of each entry is its key.
fn document(keys: &[&str]) -> String {
    let entry = |key: &&str| {
        // A user's name ends at the first colon.
        let user = key.replace(':', ";");
        ((*key).to_owned(), json!({ "auth": STANDARD.encode(format!("{user}:p")) }))
    };
    let entries: serde_json::Map<_, _> = keys.iter().map(entry).collect();
    json!({ "auths": entries }).to_string()
}

/// Keys, an image, and the key whose entry is found, if any.
const WINNERS: &[(&[&str], &str, Option<&str>)] = &[
    (&["a.b"], "a.b/team/app:1", Some("a.b")),
    // The most specific key wins, in whatever order they stand.
    (&["a.b", "a.b/team", "a.b/team/app"], "a.b/team/app:1", Some("a.b/team/app")),
    (&["a.b/team", "a.b"], "a.b/team/app:1", Some("a.b/team")),
    // A path ends at a slash: for the kubelet this key is a prefix of the image.
    (&["a.b", "a.b/te"], "a.b/team/app:1", Some("a.b")),
    // The port is part of the host.
    (&["a.b", "a.b:5000"], "a.b:5000/app", Some("a.b:5000")),
    (&["a.b"], "a.b:443/app", None),
    (&["a.b:443"], "a.b/app", None),
    // No patterns.
    (&["*.b", "*"], "a.b/app", None),
    // A URL counts if no key is the host itself; its path does not count.
    (&["https://a.b/v1/"], "a.b/app", Some("https://a.b/v1/")),
    (&["https://a.b/v1/", "a.b"], "a.b/app", Some("a.b")),
    (&["https://a.b/team"], "a.b/app", Some("https://a.b/team")),
    (&["oci://a.b", "//a.b", "HTTPS://a.b", "a.b/"], "a.b/app", None),
    (&["A.B"], "a.b/app", None),
    // Docker Hub has several names.
    (&["https://index.docker.io/v1/"], "nginx", Some("https://index.docker.io/v1/")),
    (&["index.docker.io", "docker.io"], "nginx", Some("docker.io")),
];

#[test]
fn cri_o_uses_the_most_specific_key_and_no_pattern() {
    if !all_here(&[Need::ContainersImage]) {
        return;
    }
    let questions: Vec<_> = WINNERS.iter().map(|(keys, image, _)| (document(keys), *image)).collect();
    for ((keys, image, winner), found) in WINNERS.iter().zip(judge(&questions)) {
        let user = match &found {
            Found::Credential(user, _) => Some(user.replace(';', ":")),
            Found::Nothing => None,
            Found::Refused => panic!("{keys:?} is refused for {image}"),
        };
        assert_eq!(user.as_deref(), *winner, "{image} with {keys:?}");
    }
}

/// A document, an image, and whether the lookup for that image is an error.
const REFUSED: &[(&str, &str, bool)] = &[
    ("", "a.b/app", true),
    ("[]", "a.b/app", true),
    (r#"{"auths":{"c.d":[]}}"#, "a.b/app", true),
    (r#"{"auths":{"c.d":{"auth":1}}}"#, "a.b/app", true),
    // Accepted by the kubelet, which does not know these fields.
    (r#"{"auths":{"c.d":{"identitytoken":1}}}"#, "a.b/app", true),
    (r#"{"auths":{},"credHelpers":{"c.d":1}}"#, "a.b/app", true),
    // An entry that cannot be decoded spoils only its own registry. The kubelet ignores the whole file.
    (r#"{"auths":{"c.d":{"auth":"?"}}}"#, "a.b/app", false),
    (r#"{"auths":{"a.b":{"auth":"?"}}}"#, "a.b/app", true),
    // Base64 without padding. The kubelet accepts it.
    (r#"{"auths":{"a.b":{"auth":"dTpwcA"}}}"#, "a.b/app", true),
    (r#"{"auths":{"a.b":{"auth":"dTpwcA=="}}}"#, "a.b/app", false),
    // Our own record, and other fields of any type.
    (r#"{"auths":{},"ecr-node-agent":{"version":1},"username":1}"#, "a.b/app", false),
    ("null", "a.b/app", false),
    ("{}", "a.b/app", false),
];

#[test]
fn cri_o_refuses_other_files_than_the_kubelet() {
    if !all_here(&[Need::ContainersImage]) {
        return;
    }
    let questions: Vec<_> =
        REFUSED.iter().map(|(document, image, _)| ((*document).to_owned(), *image)).collect();
    for ((document, image, refused), found) in REFUSED.iter().zip(judge(&questions)) {
        assert_eq!(found == Found::Refused, *refused, "{image} with {document}: {found:?}");
    }
}

#[test]
fn cri_o_reads_nothing_but_auth_and_stops_at_the_first_key() {
    if !all_here(&[Need::ContainersImage]) {
        return;
    }
    let questions = [
        // The kubelet reads these two, too.
        r#"{"auths":{"a.b":{"username":"u","password":"p"}}}"#,
        // An empty entry hides the one behind it. The kubelet tries both.
        r#"{"auths":{"a.b":{"auth":"dTpw"},"a.b/team":{}}}"#,
    ]
    .map(|document| (document.to_owned(), "a.b/team/app"));
    assert_eq!(judge(&questions), [Found::Nothing, Found::Nothing]);
}

const IMAGES: [&str; 6] = [
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:1",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team-b/app:1",
    "registry.example.com/team/app",
    "registry.example.com:5000/app",
    "000000000000.dkr.ecr.eu-west-1.amazonaws.com/app",
    "nginx",
];
/// Keys of other programs. Each registry has one spelling as a URL at most: of several, the lookup takes any.
const KEYS: [&str; 14] = [
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/te",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
    "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/v1/",
    "*.dkr.ecr.eu-west-1.amazonaws.com",
    "000000000000.dkr.ecr.eu-west-1.amazonaws.com",
    "registry.example.com",
    "registry.example.com/team",
    "https://registry.example.com/v2/",
    "registry.example.com:5000",
    "docker.io",
    "https://index.docker.io/v1/",
];

#[test]
fn a_refresh_gives_cri_o_our_token_and_changes_nothing_else_for_it() {
    if !all_here(&[Need::ContainersImage]) {
        return;
    }
    #[expect(clippy::disallowed_methods, reason = "test code")]
    let seed = std::env::var("ECR_NODE_AGENT_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    let mut rng = Rng::with_seed(seed);
    let node = Node::new();
    let (mut questions, mut passwords) = (Vec::new(), Vec::new());
    for _ in 0..DOCUMENTS {
        let keys: Vec<_> = KEYS.into_iter().filter(|_| rng.u32(..100) < 40).collect();
        let before = document(&keys);
        node.write("kubelet/config.json", &before);
        node.once(&[]).expect(0, &[]);
        let after = fs::read_to_string(node.auth_file()).unwrap();
        passwords.push(node.aws.issued().last().unwrap().password.clone());
        for image in IMAGES {
            questions.push((before.clone(), image));
            questions.push((after.clone(), image));
        }
    }
    let found = judge(&questions);
    let (mut ours, mut more_specific) = (0, 0);
    for ((pair, question), password) in
        found.chunks(2).zip(questions.chunks(2)).zip(passwords.iter().flat_map(|one| [one; IMAGES.len()]))
    {
        let (before, after, (document, image)) = (&pair[0], &pair[1], &question[0]);
        let own = Found::Credential("AWS".to_owned(), password.clone());
        if image.starts_with(HOST) && *after == own {
            ours += 1;
            continue;
        }
        assert_eq!(before, after, "seed {seed}: {image} with {document}");
        if let Some(repository) = image.strip_prefix(HOST) {
            // A key of another program with a path of this image.
            let (repository, _) = repository.rsplit_once(':').unwrap();
            let mut parents =
                repository.match_indices('/').map(|(at, _)| &repository[..at]).chain([repository]);
            let keys: Value = serde_json::from_str(document).unwrap();
            assert!(
                parents.any(|path| !path.is_empty() && keys["auths"].get(format!("{HOST}{path}")).is_some()),
                "seed {seed}: our token is not found for {image} with {document}"
            );
            more_specific += 1;
        }
    }
    tell(&format!(
        "containers/image: {DOCUMENTS} documents with seed {seed}: our token is found {ours} times, a more specific \
         key of another program {more_specific} times; nothing else changed"
    ));
    assert!(ours > DOCUMENTS / 2 && more_specific > DOCUMENTS / 6, "{ours}, {more_specific}");
}
