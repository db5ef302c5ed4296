//! What the kubelet would do to pull an image: which file it reads, which entries it tries, and why not others.
//!
//! [`look`] reads the files, [`explain`] is a pure function of their content, and [`verify`] asks the registries.

use super::plugins::Plugins;
use super::visibility::Visibility;
use crate::auth_file::read_place;
use crate::credential_provider::kubelet_config::Provider;
use crate::docker_config::entry::Credentials;
use crate::docker_config::image::Image;
use crate::docker_config::key::visible;
use crate::docker_config::keyring::{Entry, Keyring, LookUp};
use crate::docker_config::matching::Mismatch;
use crate::docker_config::search::{self, Content, Kubelet, Place, Verdict};
use crate::ecr::http::registries::Registries;
use crate::inspect::registry::client::{self, Verification};
use crate::report::redact::redact_known;
use jiff::Timestamp;
use std::path::{Path, PathBuf};

/// The longest name of a token source that is shown. The longest ARN of a role has 2,048 characters.
pub(super) const LONGEST_SOURCE: usize = 2200;

/// What the kubelet makes of each file, and what that means for each image.
#[derive(Debug)]
pub struct Explanation {
    /// The kubelet.
    pub kubelet: Kubelet,
    /// The files.
    pub search: Search,
    /// The kubelet's plugins; `None` if no configuration of plugins was found.
    pub plugins: Option<Plugins>,
    /// The images, in the order in which they were given.
    pub images: Vec<ImageExplanation>,
}

/// What is in the kubelet's search path.
#[derive(Debug)]
pub struct Search {
    /// The places in the kubelet's order.
    pub places: Vec<(Place, Verdict)>,
    /// The file that was read for the first place, since that place cannot be seen from here; `None` if it can. The first
    /// place should be a link to this file, which was not checked.
    pub read_instead: Option<PathBuf>,
}

/// What there is for one image.
#[derive(Debug)]
pub struct ImageExplanation {
    /// The image.
    pub image: Image,
    /// The credentials that the kubelet tries, in its order.
    pub tried: Vec<Tried>,
    /// The entries that do not match this image.
    pub not_tried: Vec<NotTried>,
    /// How many more entries do not match: `not_tried` lists 1,000 at most.
    pub more_not_tried: usize,
    /// The names of the plugins that the kubelet asks besides, in its order.
    pub plugins: Vec<String>,
    /// Whether nothing matched, so that Docker Hub's entry is tried instead.
    pub is_docker_hub_default: bool,
    /// What the registry answered; `None` if it was not asked.
    pub verification: Option<Verification>,
}

/// A credential that the kubelet tries.
#[derive(Debug)]
pub struct Tried {
    /// The entry's key, without passwords.
    pub key: String,
    /// The user's name.
    pub username: String,
    /// Whether it can work.
    pub state: State,
    /// The token source that its token came from; `None` if another program wrote the entry.
    pub source: Option<String>,
    /// Whether another spelling of the same key is tried too; the order among these is random.
    pub in_random_order: bool,
    credentials: Credentials,
}

/// Whether a credential can work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The agent wrote it, and it expires at this time.
    Valid(Timestamp),
    /// The agent wrote it, and it expired at this time.
    Expired(Timestamp),
    /// Another program wrote it, and nothing says when it expires.
    Unknown,
    /// It has neither user nor password, for example only an `identitytoken`, which the kubelet ignores.
    Empty,
}

/// An entry that does not match an image.
#[derive(Debug)]
pub struct NotTried {
    /// Its key, without passwords.
    pub key: String,
    /// Why it does not match.
    pub mismatch: Mismatch,
}

impl State {
    /// Whether a pull may work with it.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Valid(_) | Self::Unknown)
    }
}

impl ImageExplanation {
    /// Whether one of its credentials may work, or, if the registry was asked, does. A plugin may have one, with which the
    /// registry is not asked.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        match &self.verification {
            Some(verification) => verification.with.iter().any(|answers| answers.meaning.is_good()),
            None => self.has_usable_entry() || !self.plugins.is_empty(),
        }
    }

    /// Whether a credential in the file may work.
    #[must_use]
    pub fn has_usable_entry(&self) -> bool {
        self.tried.iter().any(|tried| tried.state.is_usable())
    }
}

impl Search {
    /// The file that the kubelet uses; `None` if there is none, or if that is unknown.
    #[must_use]
    pub fn used(&self) -> Option<&Keyring> {
        self.places.iter().find_map(|(_, verdict)| match verdict {
            Verdict::Used(keyring) => Some(keyring),
            _ => None,
        })
    }

    /// The first place that decides and that is unknown, with the reason; `None` if it is known which file the kubelet uses.
    #[must_use]
    pub fn unknown(&self) -> Option<(&Place, &str)> {
        self.places.iter().find_map(|(place, verdict)| match verdict {
            Verdict::Unknown(why) if self.used().is_none() => Some((place, why.as_str())),
            _ => None,
        })
    }
}

impl Explanation {
    /// Whether there is a credential for every image that may work.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.search.unknown().is_none() && self.images.iter().all(ImageExplanation::is_usable)
    }
}

/// Reads the files in the kubelet's search path, as far as they can be seen. `auth_file` is the path by which the agent knows
/// the first one: another path in the linked layout.
#[must_use]
pub fn look(kubelet: &Kubelet, auth_file: &Path, visibility: &Visibility) -> Search {
    let mut places: Vec<Place> = Vec::new();
    for place in kubelet.places() {
        // Reading a file twice changes nothing.
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let is_seen = visibility.shows(&kubelet.auth_file);
    let read_instead = (auth_file != kubelet.auth_file && !is_seen).then(|| auth_file.to_owned());
    let contents = places.into_iter().map(|place| {
        let path = match &read_instead {
            Some(own) if place.path == kubelet.auth_file => own,
            _ => &place.path,
        };
        let content = match read_place(path) {
            Content::Missing | Content::Unreadable(_) if !visibility.shows(path) => Content::Unknown(
                "it cannot be seen from this pod, since its directory is not mounted".to_owned(),
            ),
            content => content,
        };
        (place, content)
    });
    Search { places: search::judge(contents.collect()), read_instead }
}

/// What the kubelet would do for each image.
#[must_use]
pub fn explain(
    kubelet: Kubelet,
    search: Search,
    plugins: Option<Plugins>,
    images: Vec<Image>,
    now: Timestamp,
) -> Explanation {
    let nothing = Keyring::default();
    let keyring = search.used().unwrap_or(&nothing);
    let providers =
        plugins.as_ref().and_then(|plugins| plugins.providers.as_deref().ok()).unwrap_or_default();
    let images = images.into_iter().map(|image| explain_image(keyring, providers, image, now)).collect();
    Explanation { kubelet, search, plugins, images }
}

/// Asks the registry of each image, with each credential in the kubelet's order.
pub async fn verify(explanation: &mut Explanation, http: &Registries, plain_http: bool) {
    for image in &mut explanation.images {
        let credentials: Vec<&Credentials> = image.tried.iter().map(|tried| &tried.credentials).collect();
        image.verification = Some(client::verify(http, &image.image, &credentials, plain_http).await);
    }
}

fn explain_image(
    keyring: &Keyring,
    providers: &[Provider],
    image: Image,
    now: Timestamp,
) -> ImageExplanation {
    let name = image.repository();
    let plugins = providers.iter().filter(|provider| provider.serves(&name));
    let plugins = plugins.map(|provider| provider.name.clone()).collect();
    let LookUp { tried, passed_over, more_passed_over: more_not_tried, as_default } = keyring.look_up(&image);
    let is_one_of_several =
        |entry: &Entry| tried.iter().filter(|other| entry.is_filed_with(other)).count() > 1;
    let tried = tried.iter().map(|entry| Tried {
        key: visible(&entry.key),
        username: entry.credentials.username.clone(),
        state: state(entry, now),
        // Whoever may write the file may have planted it.
        source: entry.record.as_ref().map(|record| redact_known(&record.source, LONGEST_SOURCE)),
        in_random_order: is_one_of_several(entry),
        credentials: entry.credentials.clone(),
    });
    let tried = tried.collect();
    let not_tried = passed_over
        .into_iter()
        .map(|(entry, mismatch)| NotTried { key: visible(&entry.key), mismatch })
        .collect();
    ImageExplanation {
        image,
        tried,
        not_tried,
        more_not_tried,
        plugins,
        is_docker_hub_default: as_default,
        verification: None,
    }
}

fn state(entry: &Entry, now: Timestamp) -> State {
    match &entry.record {
        _ if entry.is_empty() => State::Empty,
        Some(record) if record.expires_at <= now => State::Expired(record.expires_at),
        Some(record) => State::Valid(record.expires_at),
        None => State::Unknown,
    }
}
