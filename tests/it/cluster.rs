//! A cluster's API server: a real `kube-apiserver` with a real `etcd`, on loopback, with RBAC and all default admission.
//!
//! Nothing else of a cluster runs. Without a controller manager no namespace gets a default service account, and none that
//! is deleted ever goes; without a kubelet no pod starts.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Request as HttpRequest;
use jiff::{SignedDuration, Timestamp};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SigningKey as _,
};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where `tests/kubernetes/build` puts the programs.
pub const PROGRAMS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../kubernetes");
const ADMIN_TOKEN: &str = "administrators-token";
const ISSUER: &str = "https://kubernetes.default.svc";
/// Who reads and writes what, without the content.
const AUDIT_POLICY: &str = r#"{
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        { "level": "None", "userGroups": ["system:masters", "system:nodes"] },
        { "level": "Metadata", "userGroups": ["system:serviceaccounts"] },
        { "level": "None" }
    ]
}"#;

/// Whether the programs are there.
pub fn is_here() -> bool {
    ["etcd", "kube-apiserver", "kubectl"].iter().all(|program| Path::new(PROGRAMS).join(program).exists())
}

/// A running API server. Dropping it ends all that it started and leaves nothing behind, and so does the end of this
/// process, however it comes.
pub struct Cluster {
    folder: PathBuf,
    port: u16,
    etcd_port: u16,
    api_server: Mutex<Option<Server>>,
    api: OnceLock<Api>,
    // Behind the API server: it ends first.
    _etcd: Server,
}

/// A client of the API server.
pub struct Api {
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
}

/// How the API server refused: status, reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub u16, pub String, pub String);

impl Api {
    /// One that is what a kubeconfig says.
    pub fn new(kubeconfig: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            kube::Client::try_from(config).unwrap()
        });
        Self { runtime, client }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, Refused> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.ask_with(method, path, &[("Content-Type", kind)], body)
    }

    /// A request with these headers.
    pub fn ask_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Value, Refused> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let mut request = HttpRequest::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match self.runtime.block_on(self.client.request(request.body(body).unwrap())) {
            Ok(value) => Ok(value),
            Err(kube::Error::Api(status)) => Err(Refused(status.code, status.reason, status.message)),
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    pub fn get(&self, path: &str) -> Result<Value, Refused> {
        self.ask("GET", path, &Value::Null)
    }

    pub fn create(&self, path: &str, object: &Value) -> Result<Value, Refused> {
        self.ask("POST", path, object)
    }

    pub fn replace(&self, path: &str, object: &Value) -> Result<Value, Refused> {
        self.ask("PUT", path, object)
    }

    /// By a JSON merge patch.
    pub fn patch(&self, path: &str, changes: &Value) -> Result<Value, Refused> {
        self.ask("PATCH", path, changes)
    }

    pub fn delete(&self, path: &str) -> Result<Value, Refused> {
        self.ask("DELETE", path, &Value::Null)
    }
}

/// A right, as a role grants it.
#[derive(Debug, Clone, Copy)]
pub struct RbacRule<'a> {
    /// The one namespace where it holds, or all of them.
    pub namespace: Option<&'a str>,
    /// With commas between them.
    pub verbs: &'a str,
    /// A resource of the core group.
    pub resource: &'a str,
    /// The one object that it is for, or all.
    pub name: Option<&'a str>,
}

/// One request, as the API server's audit log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// As in RBAC.
    pub verb: String,
    /// Of the object; empty where it has none.
    pub namespace: String,
    /// Of the object.
    pub resource: String,
    /// Of the object; empty in a list or watch of all.
    pub name: String,
    /// The answer's status.
    pub code: u64,
    /// Whether nothing was to be done.
    pub dry_run: bool,
}

/// The cluster that all tests of this process share, each in namespaces of its own. Started at the first call.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(Cluster::start)
}

impl Cluster {
    /// Starts one, for a test that the shared one is not good enough for: one that stops it.
    pub fn start() -> Self {
        assert!(is_here(), "there is no API server: run tests/kubernetes/build");
        // Not in /tmp, which may be small: etcd takes 64 MB at once.
        let folder = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap()
            .keep();
        let ca_pem = certificates(&folder);
        write(&folder, "tokens.csv", &format!("{ADMIN_TOKEN},admin,0,system:masters\n"));
        write(&folder, "audit-policy.json", AUDIT_POLICY);
        let port = free_port();
        let etcd_port = free_port();
        let etcd = Server::start(
            &folder,
            "etcd",
            &[
                "--data-dir=data",
                "--unsafe-no-fsync",
                &format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"),
                &format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"),
                "--listen-peer-urls=http://127.0.0.1:0",
            ],
            // It ends last, and takes the folder with it.
            "rm -rf \"$0\"",
        );
        let cluster =
            Self { folder, port, etcd_port, api_server: Mutex::new(None), api: OnceLock::new(), _etcd: etcd };
        write(&cluster.folder, "ca.pem", &ca_pem);
        cluster.kubeconfig("admin", ADMIN_TOKEN);
        cluster.start_api_server();
        cluster
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Where the API server listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority that the API server's certificate comes from, as PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A kubeconfig that may do everything.
    pub fn admin(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A folder for what belongs to this cluster.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the API server, after [`stop_api_server`](Self::stop_api_server), and waits until it is ready.
    pub fn start_api_server(&self) {
        let mut server = self.api_server.lock().unwrap();
        assert!(server.is_none(), "it runs already");
        *server = Some(Server::start(
            &self.folder,
            "kube-apiserver",
            &[
                "--bind-address=127.0.0.1",
                &format!("--secure-port={}", self.port),
                &format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
                "--tls-cert-file=server.pem",
                "--tls-private-key-file=server.key",
                "--authorization-mode=RBAC",
                // As every cluster has it; Pod Security decides.
                "--allow-privileged=true",
                "--token-auth-file=tokens.csv",
                &format!("--service-account-issuer={ISSUER}"),
                "--service-account-key-file=service-accounts.pub",
                "--service-account-signing-key-file=service-accounts.key",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--audit-policy-file=audit-policy.json",
                "--audit-log-path=audit.log",
            ],
            ":",
        ));
        let start = Instant::now();
        while !self.run(&self.admin(), &["get", "--raw", "/readyz"], "").status.success() {
            if start.elapsed().as_secs() > 120 {
                let log = fs::read_to_string(self.folder.join("kube-apiserver.log")).unwrap();
                panic!("kube-apiserver is not ready:\n{}", &log[log.len().saturating_sub(4000)..]);
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Kills the API server; what it keeps stays in etcd.
    pub fn stop_api_server(&self) {
        let server = self.api_server.lock().unwrap().take();
        drop(server.expect("it runs"));
    }

    /// Runs kubectl with a kubeconfig and something to read, and returns whatever comes of it.
    pub fn run(&self, kubeconfig: &Path, arguments: &[&str], input: &str) -> Output {
        let mut kubectl = Command::new(Path::new(PROGRAMS).join("kubectl"))
            .env_clear()
            // Its cache of what the server knows lies there.
            .env("HOME", &self.folder)
            .env("KUBECONFIG", kubeconfig)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without having read.
        kubectl.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        kubectl.wait_with_output().unwrap()
    }

    /// Runs kubectl as the administrator, and returns what it prints; fails where it fails.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with(arguments, "")
    }

    /// The same, with something to read.
    #[track_caller]
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(&self.admin(), arguments, input);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {}: {told}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Applies objects as the administrator.
    #[track_caller]
    pub fn apply(&self, objects: &[Value]) {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.kubectl_with(&["apply", "--server-side", "--filename=-"], &list.to_string());
    }

    /// The administrator's client.
    pub fn api(&self) -> &Api {
        self.api.get_or_init(|| Api::new(&self.admin()))
    }

    /// A new namespace whose name starts so.
    pub fn namespace(&self, start: &str) -> String {
        let name = unique(start);
        self.make_namespace(&name, &json!({}));
        name
    }

    /// A namespace of this name, with labels.
    pub fn make_namespace(&self, name: &str, labels: &Value) {
        let namespace = json!({ "metadata": { "name": name, "labels": labels } });
        self.api().create("/api/v1/namespaces", &namespace).unwrap();
    }

    /// A new service account, which may do nothing yet.
    pub fn service_account(&self) -> Account<'_> {
        let name = self.namespace("agent");
        let account = json!({ "metadata": { "name": name } });
        self.api().create(&format!("/api/v1/namespaces/{name}/serviceaccounts"), &account).unwrap();
        Account { cluster: self, name }
    }

    /// Writes a kubeconfig with this token in it.
    fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        self.kubeconfig_at(name, &self.url(), &json!({ "token": token }))
    }

    /// Writes a kubeconfig for another way to the API server, or another kind of credentials.
    pub fn kubeconfig_at(&self, name: &str, url: &str, user: &Value) -> PathBuf {
        let file = format!("{name}.kubeconfig");
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "test",
                "cluster": { "server": url, "certificate-authority": self.ca_file() },
            }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
            "current-context": "test",
        });
        write(&self.folder, &file, &kubeconfig.to_string());
        self.folder.join(file)
    }

    /// What service accounts have asked for until now, oldest first. An answer is logged at its end: a watch's, or one
    /// that just came, may still be missing.
    pub fn requests(&self) -> Vec<Request> {
        let log = fs::read_to_string(self.folder.join("audit.log")).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        log.lines()
            // The last line may be half written.
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|event| Request {
                user: text(&event["user"]["username"]),
                verb: text(&event["verb"]),
                namespace: text(&event["objectRef"]["namespace"]),
                resource: text(&event["objectRef"]["resource"]),
                name: text(&event["objectRef"]["name"]),
                code: event["responseStatus"]["code"].as_u64().unwrap_or(0),
                dry_run: event["requestURI"].as_str().is_some_and(|uri| uri.contains("dryRun=All")),
            })
            .collect()
    }
}

/// A service account, in a namespace of its own that has its name.
pub struct Account<'a> {
    cluster: &'a Cluster,
    /// Its name, and its namespace's.
    pub name: String,
}

impl Account<'_> {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{0}:{0}", self.name)
    }

    /// Grants it something.
    pub fn may(&self, rule: RbacRule<'_>) {
        const GROUP: &str = "rbac.authorization.k8s.io";
        let (place, kind, plural) = match rule.namespace {
            Some(namespace) => (format!("/apis/{GROUP}/v1/namespaces/{namespace}"), "Role", "roles"),
            None => (format!("/apis/{GROUP}/v1"), "ClusterRole", "clusterroles"),
        };
        let name = unique(&self.name);
        let mut right = json!({
            "apiGroups": [""], "resources": [rule.resource], "verbs": rule.verbs.split(',').collect::<Vec<_>>(),
        });
        if let Some(name) = rule.name {
            right["resourceNames"] = json!([name]);
        }
        let rights = json!({ "metadata": { "name": name }, "rules": [right] });
        let binding = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": GROUP, "kind": kind, "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": self.name, "namespace": self.name }],
        });
        let api = self.cluster.api();
        api.create(&format!("{place}/{plural}"), &rights).unwrap();
        let bindings = plural.replace("roles", "rolebindings");
        api.create(&format!("{place}/{bindings}"), &binding).unwrap();
        // The API server decides by a copy of the roles, which comes a moment later.
        let review = json!({ "spec": { "user": self.user(), "resourceAttributes": {
            "namespace": rule.namespace, "verb": rule.verbs.split(',').next(),
            "resource": rule.resource, "name": rule.name,
        } } });
        let start = Instant::now();
        let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        while api.create(reviews, &review).unwrap()["status"]["allowed"] != true {
            assert!(start.elapsed().as_secs() < 60, "{rule:?} does not hold");
        }
    }

    /// A new token, good for an hour.
    pub fn token(&self) -> String {
        let path = format!("/api/v1/namespaces/{0}/serviceaccounts/{0}/token", self.name);
        let request = json!({ "spec": { "expirationSeconds": 3600 } });
        self.cluster.api().create(&path, &request).unwrap()["status"]["token"].as_str().unwrap().to_owned()
    }

    /// A token that is good until then, signed with the API server's own key.
    pub fn token_until(&self, end: Timestamp) -> String {
        let path = format!("/api/v1/namespaces/{0}/serviceaccounts/{0}", self.name);
        let uid = self.cluster.api().get(&path).unwrap()["metadata"]["uid"].clone();
        let start = end - SignedDuration::from_hours(1);
        let claims = json!({
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": self.user(),
            "iat": start.as_second(),
            "nbf": start.as_second(),
            "exp": end.as_second(),
            "kubernetes.io": {
                "namespace": self.name,
                "serviceaccount": { "name": self.name, "uid": uid },
            },
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "ES256", "typ": "JWT" })), part(&claims));
        let key = fs::read_to_string(self.cluster.folder.join("service-accounts.key")).unwrap();
        let signature = KeyPair::from_pem(&key).unwrap().sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(two_numbers(&signature)))
    }

    /// A kubeconfig with a new token in it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_with(&self.token())
    }

    /// A kubeconfig with this token in it.
    pub fn kubeconfig_with(&self, token: &str) -> PathBuf {
        self.cluster.kubeconfig(&self.name, token)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.api_server.lock().map(|mut server| server.take()));
    }
}

/// A program that ends when this value goes, or this process.
#[derive(Debug)]
struct Server(Child);

impl Server {
    /// Starts it in a folder, with its output in a log there; `afterwards` runs when it has ended.
    fn start(folder: &Path, program: &str, arguments: &[&str], afterwards: &str) -> Self {
        let log =
            File::options().create(true).append(true).open(folder.join(format!("{program}.log"))).unwrap();
        // The shell waits for the end of its input, which is the end of this process at the latest. What a terminal
        // sends to all of its processes must not end the shell before that.
        let script = format!(
            "trap '' INT TERM HUP; \"$@\" </dev/null & cat >/dev/null; kill -KILL $!; wait $! 2>/dev/null; {afterwards}"
        );
        let child = Command::new("sh")
            .args([
                "-c",
                &script,
                folder.to_str().unwrap(),
                Path::new(PROGRAMS).join(program).to_str().unwrap(),
            ])
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// Makes the API server's certificate and the key that service accounts' tokens are signed with; returns the authority.
fn certificates(folder: &Path) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "a test cluster's CA");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned);
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    write(folder, "server.pem", &certificate.pem());
    write(folder, "server.key", &key.serialize_pem());
    let signing = KeyPair::generate().unwrap();
    write(folder, "service-accounts.key", &signing.serialize_pem());
    write(folder, "service-accounts.pub", &signing.public_key_pem());
    authority.pem()
}

/// An ECDSA signature as a JSON web token has it: two numbers of 32 bytes, out of their DER form.
fn two_numbers(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let (number, after) = rest[2..].split_at(usize::from(rest[1]));
        // A zero stands before one that would be negative, and zeros at the start are left out.
        let number = &number[number.len().saturating_sub(32)..];
        numbers.extend(std::iter::repeat_n(0, 32 - number.len()));
        numbers.extend(number);
        rest = after;
    }
    numbers
}

fn write(folder: &Path, name: &str, content: &str) {
    #[expect(clippy::disallowed_methods, reason = "test code")]
    fs::write(folder.join(name), content).unwrap();
}

/// A port that nobody listens on, out of those that the kernel gives to nobody who asks for any.
fn free_port() -> u16 {
    std::iter::repeat_with(|| fastrand::u16(20_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

/// A name that starts so, and that nobody else has.
pub fn unique(start: &str) -> String {
    let end: String = std::iter::repeat_with(fastrand::lowercase).take(8).collect();
    format!("{start}-{end}")
}
