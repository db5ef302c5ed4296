//! What Prometheus reads. Every metric has its line in `docs/metrics.md`.

use jiff::Timestamp;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::time::Duration;

/// The metrics, and the registry that writes them down.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    expiry: IntGaugeVec,
    success: IntGaugeVec,
    refreshes: IntCounterVec,
    calls: HistogramVec,
    writes: IntCounterVec,
    repairs: IntCounter,
    fighting: IntGauge,
    retries: IntGauge,
    secret_writes: IntCounterVec,
    secret_reads: IntCounterVec,
    secret_expiry: IntGaugeVec,
    secret_failing: IntGauge,
    secret_repairs: IntCounter,
    account_patches: IntCounterVec,
}

/// A token that every auth file holds.
#[derive(Debug, Clone, Copy)]
pub struct TokenInPlace<'a> {
    /// The registry.
    pub registry: &'a str,
    /// When ECR handed it out.
    pub fetched_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// Why ECR is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There was no good token in place.
    Start,
    /// It was time.
    Deadline,
    /// The last try had failed.
    Retry,
    /// New credentials were there.
    Credentials,
    /// Somebody sent SIGHUP.
    Hangup,
}

/// What became of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Success,
    /// It was throttled.
    Throttled,
    /// There were no usable credentials, or no region.
    Credentials,
    /// It failed otherwise.
    Failure,
}

impl Reason {
    /// Its label.
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

/// What became of a write of a pull secret.
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
    /// Its label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Conflict => "conflict",
            Self::Failure => "failure",
        }
    }
}

impl Outcome {
    fn of(ok: bool) -> Self {
        if ok { Self::Success } else { Self::Failure }
    }

    /// Its label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Throttled => "throttled",
            Self::Credentials => "credentials",
            Self::Failure => "failure",
        }
    }
}

/// From a call inside a region to one that is given up.
const BUCKETS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

impl Metrics {
    /// All metrics, at zero.
    ///
    /// # Errors
    /// When a name is none, or stands twice: what a test finds.
    pub fn new() -> Result<Self, prometheus::Error> {
        let named = |name: &str, help: &str| Opts::new(format!("ecr_node_agent_{name}"), help);
        let gauges = |name, help| IntGaugeVec::new(named(name, help), &["registry"]);
        let metrics = Self {
            registry: Registry::new(),
            expiry: gauges(
                "token_expiry_timestamp_seconds",
                "When the token in place for this registry ends, in seconds since 1970.",
            )?,
            success: gauges(
                "last_success_timestamp_seconds",
                "When ECR handed out the token in place for this registry, in seconds since 1970.",
            )?,
            refreshes: IntCounterVec::new(
                named("refreshes_total", "Attempts to fetch a token, by reason and result."),
                &["reason", "result"],
            )?,
            calls: HistogramVec::new(
                HistogramOpts::from(named(
                    "ecr_call_duration_seconds",
                    "How long an attempt took, from finding credentials to the answer.",
                ))
                .buckets(BUCKETS.to_vec()),
                &["result"],
            )?,
            writes: IntCounterVec::new(
                named("auth_file_writes_total", "Changes of auth files, by result."),
                &["result"],
            )?,
            repairs: IntCounter::with_opts(named(
                "drift_repairs_total",
                "How often another program had changed an auth file, and it was repaired.",
            ))?,
            fighting: IntGauge::with_opts(named(
                "drift_fight",
                "1 while another program keeps changing an auth file, and repairs are slowed down.",
            ))?,
            retries: IntGauge::with_opts(named(
                "retries_pending",
                "Sources and files whose last attempt failed, and which wait for the next one.",
            ))?,
            secret_writes: IntCounterVec::new(
                named("pull_secret_writes_total", "Writes of a pull secret, by result."),
                &["namespace", "name", "result"],
            )?,
            secret_reads: IntCounterVec::new(
                named("pull_secret_reads_total", "Looks at pull secrets, by result."),
                &["result"],
            )?,
            secret_expiry: IntGaugeVec::new(
                named(
                    "pull_secret_expiry_timestamp_seconds",
                    "When the first token in this pull secret ends, in seconds since 1970, as it was seen last.",
                ),
                &["namespace", "name"],
            )?,
            secret_failing: IntGauge::with_opts(named(
                "pull_secret_failing",
                "Pull secrets and service accounts whose last attempt failed, and which wait for the next one.",
            ))?,
            secret_repairs: IntCounter::with_opts(named(
                "pull_secret_repairs_total",
                "How often another program had changed a pull secret, and it was repaired.",
            ))?,
            account_patches: IntCounterVec::new(
                named("service_account_patches_total", "Pull secrets added to service accounts, by result."),
                &["result"],
            )?,
        };
        let build = IntGauge::with_opts(
            named("build_info", "1, with the program's version.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1);
        let registry = &metrics.registry;
        registry.register(Box::new(build))?;
        registry.register(Box::new(metrics.expiry.clone()))?;
        registry.register(Box::new(metrics.success.clone()))?;
        registry.register(Box::new(metrics.refreshes.clone()))?;
        registry.register(Box::new(metrics.calls.clone()))?;
        registry.register(Box::new(metrics.writes.clone()))?;
        registry.register(Box::new(metrics.repairs.clone()))?;
        registry.register(Box::new(metrics.fighting.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.secret_writes.clone()))?;
        registry.register(Box::new(metrics.secret_reads.clone()))?;
        registry.register(Box::new(metrics.secret_expiry.clone()))?;
        registry.register(Box::new(metrics.secret_failing.clone()))?;
        registry.register(Box::new(metrics.secret_repairs.clone()))?;
        registry.register(Box::new(metrics.account_patches.clone()))?;
        Ok(metrics)
    }

    /// The tokens that are in place. Registries that are not among them have no series any more.
    pub fn tokens<'a>(&self, tokens: impl IntoIterator<Item = TokenInPlace<'a>>) {
        self.expiry.reset();
        self.success.reset();
        for TokenInPlace { registry, fetched_at, expires_at } in tokens {
            self.expiry.with_label_values(&[registry]).set(expires_at.as_second());
            self.success.with_label_values(&[registry]).set(fetched_at.as_second());
        }
    }

    /// An attempt ended.
    pub fn attempt(&self, reason: Reason, result: Outcome, took: Duration) {
        self.refreshes.with_label_values(&[reason.label(), result.label()]).inc();
        self.calls.with_label_values(&[result.label()]).observe(took.as_secs_f64());
    }

    /// An auth file was changed, or could not be.
    pub fn written(&self, result: Outcome) {
        self.writes.with_label_values(&[result.label()]).inc();
    }

    /// Drift was repaired.
    pub fn repaired(&self) {
        self.repairs.inc();
    }

    /// Whether there is a fight with another writer.
    pub fn fight(&self, fighting: bool) {
        self.fighting.set(i64::from(fighting));
    }

    /// How many sources wait after a failure.
    pub fn retries(&self, pending: usize) {
        self.retries.set(i64::try_from(pending).unwrap_or(i64::MAX));
    }

    /// A pull secret was looked at; `ok` is false where that failed.
    pub fn secret_read(&self, ok: bool) {
        self.secret_reads.with_label_values(&[Outcome::of(ok).label()]).inc();
    }

    /// A pull secret was written, or could not be.
    pub fn secret_written(&self, namespace: &str, name: &str, result: SecretWrite) {
        self.secret_writes.with_label_values(&[namespace, name, result.label()]).inc();
    }

    /// The first token in a pull secret expires at this time.
    pub fn secret_expires(&self, namespace: &str, name: &str, expires_at: Timestamp) {
        self.secret_expiry.with_label_values(&[namespace, name]).set(expires_at.as_second());
    }

    /// Another program had changed or deleted a pull secret, and it was repaired.
    pub fn secret_repaired(&self) {
        self.secret_repairs.inc();
    }

    /// A pull secret was added to a service account, or could not be.
    pub fn account_patched(&self, ok: bool) {
        self.account_patches.with_label_values(&[Outcome::of(ok).label()]).inc();
    }

    /// A pull secret is not kept any more.
    pub fn forget_secret(&self, namespace: &str, name: &str) {
        // One that was never seen has none.
        self.secret_expiry.remove_label_values(&[namespace, name]).ok();
        for result in [SecretWrite::Success, SecretWrite::Conflict, SecretWrite::Failure] {
            self.secret_writes.remove_label_values(&[namespace, name, result.label()]).ok();
        }
    }

    /// How many pull secrets and service accounts wait after a failure.
    pub fn secrets_failing(&self, failing: usize) {
        self.secret_failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }

    /// All of it in Prometheus' text format, for `/metrics`.
    #[must_use]
    pub fn text(&self) -> String {
        // What was registered can be written.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_written_down() {
        let metrics = Metrics::new().unwrap();
        let epoch = Timestamp::UNIX_EPOCH;
        metrics.tokens([TokenInPlace { registry: "registry.example", fetched_at: epoch, expires_at: epoch }]);
        for reason in [Reason::Start, Reason::Deadline, Reason::Retry, Reason::Credentials, Reason::Hangup] {
            metrics.attempt(reason, Outcome::Success, Duration::from_millis(1));
        }
        metrics.written(Outcome::Failure);
        metrics.secret_read(true);
        metrics.secret_written("team-a", "ecr-creds", SecretWrite::Success);
        metrics.secret_expires("team-a", "ecr-creds", Timestamp::UNIX_EPOCH);
        metrics.account_patched(true);
        let docs = include_str!("../../docs/metrics.md");
        let text = metrics.text();
        let names: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(names.len(), 15, "{text}");
        for name in names {
            assert!(docs.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
        metrics.forget_secret("team-a", "ecr-creds");
        assert!(!metrics.text().contains("team-a"), "{}", metrics.text());
    }
}
