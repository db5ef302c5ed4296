//! What Prometheus reads. `docs/metrics.md` describes every metric; names and labels are an interface.

use super::agent_state::Failure;
use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::time::Duration;

/// The metrics, and the registry that collects them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    tokens: Tokens,
    files: Files,
    secrets: Secrets,
}

/// Metrics about token sources and registries.
#[derive(Debug, Clone)]
struct Tokens {
    ready: IntGaugeVec,
    expiry: IntGaugeVec,
    success: IntGaugeVec,
    refreshes: IntCounterVec,
    calls: HistogramVec,
    retries: IntGauge,
    failing: IntGaugeVec,
}

/// Metrics about auth files.
#[derive(Debug, Clone)]
struct Files {
    writes: IntCounterVec,
    repairs: IntCounter,
    fighting: IntGauge,
    link_repairs: IntCounter,
}

/// Metrics about pull secrets and service accounts.
#[derive(Debug, Clone)]
struct Secrets {
    writes: IntCounterVec,
    reads: IntCounterVec,
    expiry: IntGaugeVec,
    failing: IntGauge,
    repairs: IntCounter,
    account_patches: IntCounterVec,
}

/// A registry that is asked for, as the auth files hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryState {
    /// The registry.
    pub registry: String,
    /// Whether every auth file holds an unexpired entry.
    pub is_ready: bool,
    /// When ECR gave the token on disk; `None` if there is none.
    pub fetched_at: Option<Timestamp>,
    /// When the token on disk expires; `None` if there is none.
    pub expires_at: Option<Timestamp>,
}

/// Why ECR is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The agent started, and no good token was on disk.
    Start,
    /// The refresh was due.
    Deadline,
    /// The last attempt had failed.
    Retry,
    /// There were new credentials.
    Credentials,
    /// SIGHUP.
    Hangup,
}

impl Reason {
    /// The label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Deadline => "deadline",
            Self::Retry => "retry",
            Self::Credentials => "credentials",
            Self::Hangup => "hangup",
        }
    }
}

/// How a write of a pull secret ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretWrite {
    /// It was written.
    Success,
    /// Another writer was faster.
    Conflict,
    /// It could not be written.
    Failure,
}

impl SecretWrite {
    /// The label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Conflict => "conflict",
            Self::Failure => "failure",
        }
    }
}

/// The label of a success or a failure.
fn label(is_ok: bool) -> &'static str {
    if is_ok { "success" } else { "failure" }
}

/// From a call inside a region to one that runs into the time limit, in seconds.
const BUCKETS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Registers each metric as it is made.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<T: Collector + Clone + 'static>(&self, metric: T) -> Result<T, Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.keep(IntGauge::with_opts(opts(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.keep(IntGaugeVec::new(opts(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.keep(IntCounter::with_opts(opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.keep(IntCounterVec::new(opts(name, help), labels)?)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("ecr_node_agent_{name}"), help)
}

impl Tokens {
    fn new(maker: &Maker<'_>) -> Result<Self, Error> {
        let calls = HistogramOpts::from(opts(
            "ecr_call_duration_seconds",
            "Duration of an attempt, from finding credentials to the answer.",
        ));
        Ok(Self {
            ready: maker.gauges(
                "registry_ready",
                "1 if every auth file holds an unexpired entry for this registry, else 0.",
                &["registry"],
            )?,
            expiry: maker.gauges(
                "token_expiry_timestamp_seconds",
                "When the token on disk for this registry expires, in seconds since 1970.",
                &["registry"],
            )?,
            success: maker.gauges(
                "last_success_timestamp_seconds",
                "When ECR gave the token on disk for this registry, in seconds since 1970.",
                &["registry"],
            )?,
            refreshes: maker.counters(
                "refreshes_total",
                "Attempts to fetch a token, by reason and result.",
                &["reason", "result"],
            )?,
            calls: maker.keep(HistogramVec::new(calls.buckets(BUCKETS.to_vec()), &["result"])?)?,
            retries: maker.gauge(
                "retries_pending",
                "Token sources and auth files whose last attempt failed, and that are tried again.",
            )?,
            failing: maker.gauges(
                "failing_since_timestamp_seconds",
                "When the current failures of this class began, in seconds since 1970. Absent if nothing fails.",
                &["class"],
            )?,
        })
    }
}

impl Files {
    fn new(maker: &Maker<'_>) -> Result<Self, Error> {
        Ok(Self {
            writes: maker.counters(
                "auth_file_writes_total",
                "Changes of auth files, by result.",
                &["result"],
            )?,
            repairs: maker.counter(
                "drift_repairs_total",
                "How often another program had changed an auth file, and the agent restored its entries.",
            )?,
            fighting: maker.gauge(
                "drift_fight",
                "1 while another program keeps changing an auth file, and the agent restores its entries once a minute at most.",
            )?,
            link_repairs: maker.counter(
                "link_repairs_total",
                "How often `link --watch` has made the link to an auth file again, in the linked layout.",
            )?,
        })
    }
}

impl Secrets {
    fn new(maker: &Maker<'_>) -> Result<Self, Error> {
        Ok(Self {
            writes: maker.counters(
                "pull_secret_writes_total",
                "Writes of a pull secret, by result.",
                &["namespace", "name", "result"],
            )?,
            reads: maker.counters("pull_secret_reads_total", "Reads of pull secrets, by result.", &["result"])?,
            expiry: maker.gauges(
                "pull_secret_expiry_timestamp_seconds",
                "When the first token in this pull secret expires, in seconds since 1970, as it was last seen.",
                &["namespace", "name"],
            )?,
            failing: maker.gauge(
                "pull_secret_failing",
                "Pull secrets and service accounts whose last attempt failed, and that are tried again.",
            )?,
            repairs: maker.counter(
                "pull_secret_repairs_total",
                "How often another program had changed a pull secret, and the agent restored it.",
            )?,
            account_patches: maker.counters(
                "service_account_patches_total",
                "Pull secrets added to service accounts, by result.",
                &["result"],
            )?,
        })
    }
}

impl Metrics {
    /// All metrics, at zero.
    ///
    /// # Errors
    /// When a name is invalid or used twice, which a test finds.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let maker = Maker(&registry);
        let version = opts("build_info", "1, with the program's version.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        maker.keep(IntGauge::with_opts(version)?)?.set(1);
        let (tokens, files) = (Tokens::new(&maker)?, Files::new(&maker)?);
        let secrets = Secrets::new(&maker)?;
        Ok(Self { registry, tokens, files, secrets })
    }

    /// The registries that are asked for. Others have no series any more.
    pub fn registries(&self, registries: &[RegistryState]) {
        let Tokens { ready, expiry, success, .. } = &self.tokens;
        for metric in [ready, expiry, success] {
            metric.reset();
        }
        for state in registries {
            let label = &[state.registry.as_str()];
            ready.with_label_values(label).set(i64::from(state.is_ready));
            if let Some(at) = state.expires_at {
                expiry.with_label_values(label).set(at.as_second());
            }
            if let Some(at) = state.fetched_at {
                success.with_label_values(label).set(at.as_second());
            }
        }
    }

    /// What fails at the moment. Classes that are not among these have no series any more.
    pub fn failing(&self, failures: &[Failure]) {
        self.tokens.failing.reset();
        for failure in failures {
            let since = self.tokens.failing.with_label_values(&[failure.class.as_str()]);
            let earliest = match since.get() {
                0 => failure.since.as_second(),
                before => before.min(failure.since.as_second()),
            };
            since.set(earliest);
        }
    }

    /// An attempt ended. `result` is `success`, or the class of the failure.
    pub fn attempt(&self, reason: Reason, result: &str, took: Duration) {
        self.tokens.refreshes.with_label_values(&[reason.label(), result]).inc();
        self.tokens.calls.with_label_values(&[result]).observe(took.as_secs_f64());
    }

    /// An auth file was changed; `is_ok` is false if it could not be.
    pub fn written(&self, is_ok: bool) {
        self.files.writes.with_label_values(&[label(is_ok)]).inc();
    }

    /// The agent restored its entries in an auth file.
    pub fn repaired(&self) {
        self.files.repairs.inc();
    }

    /// Whether another program keeps changing an auth file.
    pub fn fight(&self, is_fighting: bool) {
        self.files.fighting.set(i64::from(is_fighting));
    }

    /// How often the links were made again since their watcher started. A smaller number than before comes from another watcher.
    pub fn links(&self, repairs: u64) {
        self.files.link_repairs.reset();
        self.files.link_repairs.inc_by(repairs);
    }

    /// How many token sources and auth files wait for another attempt.
    pub fn retries(&self, pending: usize) {
        self.tokens.retries.set(i64::try_from(pending).unwrap_or(i64::MAX));
    }

    /// A pull secret was read; `is_ok` is false if that failed.
    pub fn secret_read(&self, is_ok: bool) {
        self.secrets.reads.with_label_values(&[label(is_ok)]).inc();
    }

    /// A write of a pull secret ended.
    pub fn secret_written(&self, namespace: &str, name: &str, result: SecretWrite) {
        self.secrets.writes.with_label_values(&[namespace, name, result.label()]).inc();
    }

    /// The first token in a pull secret expires at this time.
    pub fn secret_expires(&self, namespace: &str, name: &str, expires_at: Timestamp) {
        self.secrets.expiry.with_label_values(&[namespace, name]).set(expires_at.as_second());
    }

    /// The agent restored a pull secret that another program had changed or deleted.
    pub fn secret_repaired(&self) {
        self.secrets.repairs.inc();
    }

    /// A pull secret was added to a service account; `is_ok` is false if it could not be.
    pub fn account_patched(&self, is_ok: bool) {
        self.secrets.account_patches.with_label_values(&[label(is_ok)]).inc();
    }

    /// A pull secret is not kept any more.
    pub fn forget_secret(&self, namespace: &str, name: &str) {
        // A series that does not exist cannot be removed.
        self.secrets.expiry.remove_label_values(&[namespace, name]).ok();
        for result in [SecretWrite::Success, SecretWrite::Conflict, SecretWrite::Failure] {
            self.secrets.writes.remove_label_values(&[namespace, name, result.label()]).ok();
        }
    }

    /// How many pull secrets and service accounts wait for another attempt.
    pub fn secrets_failing(&self, failing: usize) {
        self.secrets.failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }

    /// All metrics in Prometheus' text format, for `/metrics`.
    #[must_use]
    pub fn text(&self) -> String {
        // Registered metrics can always be written.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(class: &str, since: i64) -> Failure {
        Failure {
            subject: String::new(),
            class: class.to_owned(),
            error: String::new(),
            since: Timestamp::from_second(since).unwrap(),
            next_attempt: None,
        }
    }

    #[test]
    fn every_metric_is_in_the_documentation() {
        let metrics = Metrics::new().unwrap();
        let epoch = Some(Timestamp::UNIX_EPOCH);
        metrics.registries(&[RegistryState {
            registry: "registry.example".to_owned(),
            is_ready: true,
            fetched_at: epoch,
            expires_at: epoch,
        }]);
        for reason in [Reason::Start, Reason::Deadline, Reason::Retry, Reason::Credentials, Reason::Hangup] {
            metrics.attempt(reason, "success", Duration::from_millis(1));
        }
        metrics.failing(&[failure("denied", 7)]);
        metrics.written(false);
        metrics.secret_read(true);
        metrics.secret_written("team-a", "ecr-creds", SecretWrite::Success);
        metrics.secret_expires("team-a", "ecr-creds", Timestamp::UNIX_EPOCH);
        metrics.account_patched(true);
        let docs = include_str!("../../docs/metrics.md");
        let text = metrics.text();
        let names: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(names.len(), 18, "{text}");
        for name in names {
            assert!(docs.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
        metrics.forget_secret("team-a", "ecr-creds");
        assert!(!metrics.text().contains("team-a"), "{}", metrics.text());
    }

    #[test]
    fn a_series_ends_with_its_registry_or_its_failure() {
        let metrics = Metrics::new().unwrap();
        let missing = RegistryState {
            registry: "a.example".to_owned(),
            is_ready: false,
            fetched_at: None,
            expires_at: None,
        };
        metrics.registries(std::slice::from_ref(&missing));
        metrics.failing(&[failure("denied", 9), failure("denied", 7), failure("drift", 8)]);
        let text = metrics.text();
        for line in [
            "ecr_node_agent_registry_ready{registry=\"a.example\"} 0",
            "ecr_node_agent_failing_since_timestamp_seconds{class=\"denied\"} 7",
            "ecr_node_agent_failing_since_timestamp_seconds{class=\"drift\"} 8",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(!text.contains("token_expiry_timestamp_seconds{"), "{text}");
        metrics.registries(&[]);
        metrics.failing(&[]);
        let text = metrics.text();
        assert!(!text.contains("a.example") && !text.contains("class="), "{text}");
    }
}
