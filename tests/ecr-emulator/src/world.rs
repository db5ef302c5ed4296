//! What the emulator knows: its clock, the credentials and tokens it has handed out, the calls it has seen.

use crate::{
    Api, Call, Issued, Options,
    fault::{Fault, Times},
    server::Asked,
    signature::{Authorization, hex},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Stands in every password, in plain ASCII, so that a leak is found by one search.
pub(crate) const MARKER: &str = "SECRETPASSWORD";

/// The options, and behind a lock all that changes.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) options: Options,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    clock_offset: SignedDuration,
    calls: Vec<Call>,
    scripts: Vec<Script>,
    tokens: Vec<Token>,
    keys: HashMap<String, Key>,
    /// The registry's bearer tokens, each with the password that it was given for; empty if for nobody's.
    bearers: HashMap<String, String>,
    /// Session tokens of the instance metadata service, each with its end.
    sessions: HashMap<String, Timestamp>,
}

/// A fault that waits for its calls.
#[derive(Debug)]
struct Script {
    api: Api,
    region: Option<String>,
    fault: Fault,
    /// `None`: for ever.
    left: Option<usize>,
}

#[derive(Debug)]
struct Token {
    issued: Issued,
    revoked: bool,
}

/// What belongs to an access key.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) secret: String,
    /// Temporary credentials only, like `expires_at`.
    pub(crate) session_token: Option<String>,
    pub(crate) expires_at: Option<Timestamp>,
    /// The role, if STS handed the key out.
    pub(crate) role: Option<String>,
}

/// Temporary credentials, just made.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) access_key: String,
    pub(crate) secret: String,
    pub(crate) session_token: String,
    pub(crate) expires_at: Timestamp,
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let keys = options.access_keys.iter().map(|(id, secret)| {
            let key = Key { secret: secret.clone(), session_token: None, expires_at: None, role: None };
            (id.clone(), key)
        });
        let state = State { clock_offset: options.clock_offset, keys: keys.collect(), ..State::default() };
        Self { state: Mutex::new(state), options }
    }

    /// A panic elsewhere leaves nothing half done in here: each change is one statement.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The emulator's clock, to the millisecond, which is as fine as ECR's answers are.
    #[expect(clippy::disallowed_methods, reason = "the emulator's one clock")]
    pub(crate) fn now(&self) -> Timestamp {
        let now = Timestamp::now() + self.state().clock_offset;
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }

    pub(crate) fn set_clock_offset(&self, offset: SignedDuration) {
        self.state().clock_offset = offset;
    }

    /// Writes the call down and finds the fault that meets it.
    pub(crate) fn record(&self, api: Api, asked: &Asked) -> Option<Fault> {
        let at = self.now();
        let authorization = Authorization::parse(asked.header("authorization"));
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let region = text(authorization.as_ref().map(|authorization| authorization.region));
        let access_key = text(authorization.as_ref().map(|authorization| authorization.access_key));

        let mut state = self.state();
        let fault = state.next_fault(api, &region);
        let role = state.keys.get(&access_key).and_then(|key| key.role.clone());
        let host = asked.host().to_owned();
        state.calls.push(Call { api, region, access_key, role, host, fault: fault.clone(), at });
        fault
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    pub(crate) fn count(&self, api: Api) -> usize {
        self.state().calls.iter().filter(|call| call.api == api).count()
    }

    /// Replaces the fault of `api` in `region`.
    pub(crate) fn fail(&self, api: Api, region: Option<&str>, fault: Fault, times: Times) {
        let region = region.map(str::to_owned);
        let left = match times {
            Times::Always => None,
            Times::First(count) => Some(count),
        };
        let mut state = self.state();
        state.scripts.retain(|script| script.api != api || script.region != region);
        state.scripts.push(Script { api, region, fault, left });
    }

    pub(crate) fn heal(&self) {
        self.state().scripts.clear();
    }

    /// An authorization token for `region`, good until `expires_at`. `user` is `AWS:`, but for a fault.
    pub(crate) fn issue(
        &self,
        user: &str,
        region: &str,
        role: Option<String>,
        expires_at: Timestamp,
    ) -> Issued {
        // As long as the real ones: 1,874 characters, which make 2,504 of base64.
        let text = random_text(1395);
        let (head, tail) = text.split_at(24);
        let password = format!("{head}{MARKER}{tail}");
        let token_base64 = STANDARD.encode(format!("{user}{password}"));
        let issued = Issued { token_base64, password, region: region.to_owned(), role, expires_at };
        self.state().tokens.push(Token { issued: issued.clone(), revoked: false });
        issued
    }

    pub(crate) fn issued(&self) -> Vec<Issued> {
        self.state().tokens.iter().map(|token| token.issued.clone()).collect()
    }

    pub(crate) fn expire_all(&self) {
        for token in &mut self.state().tokens {
            token.revoked = true;
        }
    }

    /// Whether the registry lets somebody in with `password`.
    pub(crate) fn admits(&self, password: &str) -> bool {
        let now = self.now();
        self.state()
            .tokens
            .iter()
            .any(|token| token.issued.password == password && !token.revoked && token.issued.expires_at > now)
    }

    /// A bearer token of the registry's, for a password, which is empty for nobody's.
    pub(crate) fn lend_bearer(&self, password: String) -> String {
        let token = format!("{MARKER}.{}", random_text(120));
        self.state().bearers.insert(token.clone(), password);
        token
    }

    /// The password that a bearer token was given for; `None` where there is no such token.
    pub(crate) fn bearer(&self, token: &str) -> Option<String> {
        self.state().bearers.get(token).cloned()
    }

    /// New temporary credentials, known to the signed APIs from now on.
    pub(crate) fn lend(&self, role: Option<String>, expires_at: Timestamp) -> Lent {
        let lent = Lent {
            access_key: format!("ASIA{}", random_id(16)),
            secret: random_text(30),
            session_token: random_text(420),
            expires_at,
        };
        let key = Key {
            secret: lent.secret.clone(),
            session_token: Some(lent.session_token.clone()),
            expires_at: Some(expires_at),
            role,
        };
        self.state().keys.insert(lent.access_key.clone(), key);
        lent
    }

    pub(crate) fn key(&self, access_key: &str) -> Option<Key> {
        self.state().keys.get(access_key).cloned()
    }

    /// A session of the instance metadata service.
    pub(crate) fn open_session(&self, lifetime: SignedDuration) -> String {
        let token = random_text(42);
        let end = self.now() + lifetime;
        self.state().sessions.insert(token.clone(), end);
        token
    }

    pub(crate) fn has_session(&self, token: &str) -> bool {
        let now = self.now();
        self.state().sessions.get(token).is_some_and(|end| *end > now)
    }

    /// Every text that must never be seen in an output.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let state = self.state();
        let tokens = state.tokens.iter().map(|token| &token.issued);
        let keys = state.keys.values();
        tokens
            .flat_map(|issued| [issued.token_base64.clone(), issued.password.clone()])
            .chain(keys.flat_map(|key| [key.secret.clone()].into_iter().chain(key.session_token.clone())))
            .chain(state.bearers.keys().cloned())
            .chain(state.sessions.keys().cloned())
            .chain(self.options.container_token.clone())
            .chain([self.options.web_identity_token.clone()])
            .collect()
    }
}

impl State {
    /// The first script for `api` in `region` that has calls left; one for the region goes before one for all.
    fn next_fault(&mut self, api: Api, region: &str) -> Option<Fault> {
        let (own, general): (Vec<_>, Vec<_>) = self
            .scripts
            .iter_mut()
            .filter(|script| script.api == api && script.left != Some(0))
            .filter(|script| script.region.as_deref().is_none_or(|only| only == region))
            .partition(|script| script.region.is_some());
        let script = own.into_iter().chain(general).next()?;
        script.left = script.left.map(|left| left - 1);
        Some(script.fault.clone())
    }
}

/// `count` random bytes; zeros if the kernel has none, which no test mistakes for unique ones.
fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    SystemRandom::new().fill(&mut bytes).unwrap_or_default();
    bytes
}

/// The base64 of `bytes` random bytes.
fn random_text(bytes: usize) -> String {
    STANDARD.encode(random_bytes(bytes))
}

/// Random capital letters and digits, as in access keys.
pub(crate) fn random_id(length: usize) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    random_bytes(length).iter().map(|byte| char::from(alphabet[usize::from(byte % 32)])).collect()
}

/// A request id in the form of a UUID.
pub(crate) fn random_request_id() -> String {
    let text = hex(&random_bytes(16));
    let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
    parts.join("-")
}
