//! The auth files, the entries of other programs in each, and the checks.

use crate::writers::Style;
use ecr_emulator::Emulator;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The registry that the emulator names.
pub const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// The agent's own key in the document.
const LEDGER: &str = "ecr-node-agent";

/// An auth file.
pub struct File {
    /// Its path.
    pub path: PathBuf,
    name: &'static str,
    /// The entries of other programs, by key.
    foreign: Mutex<BTreeMap<String, Value>>,
    /// Whether another program is writing the file.
    writing: AtomicBool,
    /// Held while another program writes the file, or fills its disk: half a file because of a full disk would be that program's
    /// fault.
    disk: Mutex<()>,
    /// Whether it is on a small disk of its own.
    has_small_disk: bool,
    /// How often its disk was full.
    full: AtomicU64,
    /// How many edits have ended.
    edits: AtomicU64,
    /// How often each way of writing was used.
    styles: Mutex<BTreeMap<Style, u64>>,
    /// How often the last edit was in a copy beside the file, and not in the file.
    kept_in_copies: AtomicU64,
    /// The promises that were broken.
    broken: Mutex<Vec<String>>,
    /// How long it took after each edit until the file was good again.
    waits: Mutex<Vec<Duration>>,
}

/// Makes the auth files: a plain one, one behind a symlink, and one behind a symlinked directory, which is on a small disk of
/// its own where that can be mounted.
pub fn make(root: &Path) -> io::Result<Vec<File>> {
    for directory in ["plain", "linked", "behind", "real/deep"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    symlink("../behind/config.json", root.join("linked/config.json"))?;
    symlink("real", root.join("turned"))?;
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(root.join("real/deep")).stderr(Stdio::null());
    // Only in a mount namespace of this program: the mount then ends with it.
    let has_small_disk = std::env::var_os(crate::IN_NAMESPACE).is_some() && mount.status()?.success();
    let file = |name, path: &str| File {
        path: root.join(path),
        name,
        foreign: Mutex::default(),
        writing: AtomicBool::new(false),
        disk: Mutex::default(),
        has_small_disk: has_small_disk && path.starts_with("turned/deep"),
        full: AtomicU64::new(0),
        edits: AtomicU64::new(0),
        styles: Mutex::default(),
        kept_in_copies: AtomicU64::new(0),
        broken: Mutex::default(),
        waits: Mutex::default(),
    };
    Ok(vec![
        file("plain file", "plain/config.json"),
        file("file behind a symlink", "behind/config.json"),
        file("file in a symlinked directory", "turned/deep/config.json"),
    ])
}

impl File {
    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn document(&self) -> Option<Map<String, Value>> {
        let bytes = std::fs::read(&self.path).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Changes one entry as another program does that reads the document, changes it and writes it back. Some of these programs
    /// drop the agent's entry and its key, as chance decides.
    pub fn edit(&self, rng: &mut fastrand::Rng) {
        let style = Style::any(rng);
        let disk = self.disk.lock().unwrap();
        self.writing.store(true, Ordering::SeqCst);
        let mut document = self.document().unwrap_or_default();
        let mut foreign = self.foreign.lock().unwrap();
        let key = format!("registry-{}.example.com", rng.u8(0..40));
        if rng.u8(..) < 60 && foreign.remove(&key).is_some() {
            // Removed by its owner.
        } else {
            let password: String = (0..rng.usize(4..60)).map(|_| rng.alphanumeric()).collect();
            let auth = base64::Engine::encode(
                &base64::engine::general_purpose::STANDARD,
                format!("user:{password}"),
            );
            foreign.insert(key, json!({ "auth": auth, "note": rng.u32(..) }));
        }
        let mut auths: Map<String, Value> = foreign.clone().into_iter().collect();
        if rng.u8(..) < 215 {
            // A program that keeps what it does not know.
            if let Some(ours) = document.get("auths").and_then(|auths| auths.get(HOST)) {
                auths.insert(HOST.to_owned(), ours.clone());
            }
        } else {
            document.remove(LEDGER);
        }
        document.insert("auths".to_owned(), Value::Object(auths));
        let text = serde_json::to_string_pretty(&document).unwrap();
        if let Err(error) = style.write(&self.path, &text, rng) {
            self.report(format!("{style:?} could not write: {error}"));
        }
        *self.styles.lock().unwrap().entry(style).or_default() += 1;
        drop(foreign);
        self.writing.store(false, Ordering::SeqCst);
        self.edits.fetch_add(1, Ordering::SeqCst);
        drop(disk);
    }

    /// Fills the file's disk for a while, if that is a small one.
    pub fn fill_disk(&self, time: Duration) {
        if !self.has_small_disk {
            return;
        }
        let _disk = self.disk.lock().unwrap();
        let filler = self.path.with_file_name("filler");
        let full =
            std::fs::File::create(&filler).and_then(|mut filler| io::copy(&mut io::repeat(0), &mut filler));
        match full {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            other => self.report(format!("the disk cannot be filled: {other:?}")),
        }
        sleep(time);
        std::fs::remove_file(filler).unwrap();
        self.full.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until the file holds a good token and exactly the entries of other programs.
    pub fn wait_until_good(&self, aws: &Emulator, limit: Duration) {
        let start = Instant::now();
        loop {
            let missing = self.missing(aws);
            if missing.is_empty() {
                self.waits.lock().unwrap().push(start.elapsed());
                return;
            }
            if start.elapsed() > limit {
                // After a kill at the worst moment the last edit may be in a copy beside the file, which the log names.
                if self.is_in_a_copy() {
                    self.kept_in_copies.fetch_add(1, Ordering::SeqCst);
                } else {
                    self.report(format!("after {} s: {}", limit.as_secs(), missing.join(", ")));
                }
                // Each loss is reported once.
                let there = self.document().and_then(|document| document.get("auths").cloned());
                let there = there.and_then(|auths| auths.as_object().cloned()).unwrap_or_default();
                self.foreign.lock().unwrap().retain(|key, value| there.get(key) == Some(value));
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Whether a copy that an agent has made holds exactly the entries of other programs.
    fn is_in_a_copy(&self) -> bool {
        let Some(directory) = self.path.parent().and_then(|parent| std::fs::read_dir(parent).ok()) else {
            return false;
        };
        let foreign = self.foreign.lock().unwrap().clone();
        directory.filter_map(Result::ok).any(|copy| {
            let is_copy = copy.file_name().to_string_lossy().starts_with("config.json.");
            let bytes = std::fs::read(copy.path()).unwrap_or_default();
            let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let auths = document.get("auths").and_then(Value::as_object);
            let entries = auths.into_iter().flatten().filter(|(key, _)| *key != HOST);
            is_copy && entries.eq(foreign.iter())
        })
    }

    fn missing(&self, aws: &Emulator) -> Vec<String> {
        let Some(document) = self.document() else { return vec!["no whole document".to_owned()] };
        let auths = document.get("auths").and_then(Value::as_object).cloned().unwrap_or_default();
        let mut missing = Vec::new();
        for (key, value) in self.foreign.lock().unwrap().iter() {
            match auths.get(key) {
                Some(there) if there == value => {}
                Some(_) => missing.push(format!("the entry of {key} is not its owner's")),
                None => missing.push(format!("the entry of {key} is lost")),
            }
        }
        for key in auths.keys().filter(|key| *key != HOST) {
            if !self.foreign.lock().unwrap().contains_key(key) {
                missing.push(format!("the entry of {key}, which its owner removed, is back"));
            }
        }
        let token = auths.get(HOST).and_then(|entry| entry.get("auth")).and_then(Value::as_str);
        let good = |token: &str| {
            let issued = aws.issued();
            issued.iter().rev().any(|issued| issued.token_base64 == token && issued.expires_at > aws.now())
        };
        if !token.is_some_and(good) {
            missing.push("no good token".to_owned());
        }
        missing
    }

    /// Checks that the agent writes nothing for a while.
    pub fn check_rest(&self, time: Duration, token: SignedDuration) {
        let changed = || std::fs::metadata(&self.path).map(|found| (found.ino(), found.mtime_nsec())).ok();
        let issued = |file: &Self| {
            let document = file.document()?;
            document.get(LEDGER)?.get("entries")?.get(HOST)?.get("fetchedAt").cloned()
        };
        let (before, fetched) = (changed(), issued(self));
        sleep(time);
        // A refresh may have been due meanwhile.
        if changed() != before && issued(self) == fetched {
            self.report(format!("the file does not come to rest (tokens live for {token})"));
        }
    }

    fn report(&self, text: impl std::fmt::Display) {
        self.broken.lock().unwrap().push(format!("{}: {text}", self.name));
    }

    /// The promises that were broken for this file.
    pub fn broken(&self) -> Vec<String> {
        self.broken.lock().unwrap().clone()
    }

    /// How often the file was edited in which way, and how long it took until it was good again.
    pub fn counts(&self) -> String {
        let mut text = format!("{} edits (", self.edits.load(Ordering::SeqCst));
        for (number, (style, count)) in self.styles.lock().unwrap().iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            write!(text, "{comma}{style:?} {count}").unwrap();
        }
        let mut waits = self.waits.lock().unwrap().clone();
        waits.sort_unstable();
        let at = |percent: usize| {
            waits.get(waits.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
        };
        write!(
            text,
            "), disk full {} times, {} in a copy, good again after {:?} (median), {:?} (99 %), {:?} (longest)",
            self.full.load(Ordering::SeqCst),
            self.kept_in_copies.load(Ordering::SeqCst),
            at(50),
            at(99),
            at(100)
        )
        .unwrap();
        text
    }
}

/// A program that reads a file all the time.
#[derive(Default)]
pub struct Reader {
    reads: u64,
}

impl Reader {
    /// Reads until `stop` is set, and returns how often. A document that is torn while no other program writes the file was torn
    /// by an agent.
    pub fn read(mut self, file: &File, stop: &AtomicBool) -> u64 {
        while !stop.load(Ordering::Relaxed) {
            let edits = file.edits.load(Ordering::SeqCst);
            let quiet = !file.writing.load(Ordering::SeqCst);
            let bytes = std::fs::read(&file.path);
            let still = !file.writing.load(Ordering::SeqCst) && file.edits.load(Ordering::SeqCst) == edits;
            self.reads += 1;
            if let (true, Ok(bytes)) = (quiet && still, bytes)
                && serde_json::from_slice::<Value>(&bytes).is_err()
            {
                file.report(format!(
                    "a reader saw a torn file of {} bytes at {}",
                    bytes.len(),
                    Timestamp::now()
                ));
            }
            sleep(Duration::from_micros(500));
        }
        self.reads
    }
}
