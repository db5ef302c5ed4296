//! What the kubelet would do to pull an image: which file it reads, which entries it tries, and why not others.
//!
//! [`explain`] is a pure function of what the files hold; [`look`] is the reading before it, [`verify`] the asking after.

use crate::auth_file::read_place;
use crate::docker_config::entry::Credentials;
use crate::docker_config::image::Image;
use crate::docker_config::key::shown;
use crate::docker_config::keyring::{Entry, Found, Keyring, Mismatch};
use crate::docker_config::search::{self, Kubelet, Place, Verdict};
use crate::ecr::http::Registries;
use crate::inspect::registry::client::{self, Verification};
use jiff::Timestamp;

/// What became of each place, and what that means for each image.
#[derive(Debug)]
pub struct Explanation {
    /// The kubelet that was meant.
    pub kubelet: Kubelet,
    /// The places in the kubelet's order.
    pub places: Vec<(Place, Verdict)>,
    /// The images, in the order in which they were asked for.
    pub images: Vec<ImageExplanation>,
}

/// What there is for one image.
#[derive(Debug)]
pub struct ImageExplanation {
    /// The image.
    pub image: Image,
    /// The credentials that the kubelet tries, in its order.
    pub tried: Vec<Tried>,
    /// The entries that are not for this image.
    pub passed_over: Vec<PassedOver>,
    /// Nothing matched, and Docker Hub's entry is tried instead.
    pub as_default: bool,
    /// What the registry said, where it was asked.
    pub verification: Option<Verification>,
}

/// A credential that the kubelet tries.
#[derive(Debug)]
pub struct Tried {
    /// The entry's key, as people may see it.
    pub key: String,
    /// The user's name.
    pub username: String,
    /// Whether it can be good.
    pub state: State,
    /// Where its token came from, if it is ours.
    pub source: Option<String>,
    /// Whether another spelling of the same key is tried too; the order among these is random.
    pub in_random_order: bool,
    credentials: Credentials,
}

/// Whether a credential can be good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is ours, and good until then.
    Valid(Timestamp),
    /// It was ours, and ended then.
    Expired(Timestamp),
    /// It is somebody else's, and says nothing of its end.
    Unknown,
    /// There is neither user nor password in it, as where only an `identitytoken` is, which the kubelet ignores.
    Empty,
}

/// An entry that is not for an image.
#[derive(Debug)]
pub struct PassedOver {
    /// Its key, as people may see it.
    pub key: String,
    /// Why not.
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
    /// Whether one of its credentials may be good, or, where the registry was asked, is.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        match &self.verification {
            Some(verification) => verification.with.iter().any(|answers| answers.meaning.is_good()),
            None => self.tried.iter().any(|tried| tried.state.is_usable()),
        }
    }
}

impl Explanation {
    /// The file that the kubelet uses, if there is one and we can say so.
    #[must_use]
    pub fn used(&self) -> Option<&Keyring> {
        used(&self.places)
    }

    /// Why nobody can say which file the kubelet uses.
    #[must_use]
    pub fn unknown(&self) -> Option<(&Place, &str)> {
        self.places.iter().find_map(|(place, verdict)| match verdict {
            Verdict::Unknown(why) if self.used().is_none() => Some((place, why.as_str())),
            _ => None,
        })
    }

    /// Whether there is a credential for every image that may be good.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.images.iter().all(ImageExplanation::is_usable)
    }
}

/// Reads what is in the kubelet's search path.
#[must_use]
pub fn look(kubelet: &Kubelet) -> Vec<(Place, Verdict)> {
    let mut places: Vec<Place> = Vec::new();
    for place in kubelet.places() {
        // A second look at a file changes nothing.
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let contents = places.into_iter().map(|place| {
        let content = read_place(&place.path);
        (place, content)
    });
    search::judge(contents.collect())
}

/// What the kubelet would do for each image.
#[must_use]
pub fn explain(
    kubelet: Kubelet,
    places: Vec<(Place, Verdict)>,
    images: Vec<Image>,
    now: Timestamp,
) -> Explanation {
    let nothing = Keyring::default();
    let keyring = used(&places).unwrap_or(&nothing);
    let images = images.into_iter().map(|image| explain_image(keyring, image, now)).collect();
    Explanation { kubelet, places, images }
}

/// Asks the registry of each image, with each credential in the kubelet's order.
pub async fn verify(explanation: &mut Explanation, http: &Registries, plain_http: bool) {
    for image in &mut explanation.images {
        let credentials: Vec<&Credentials> = image.tried.iter().map(|tried| &tried.credentials).collect();
        image.verification = Some(client::verify(http, &image.image, &credentials, plain_http).await);
    }
}

fn used(places: &[(Place, Verdict)]) -> Option<&Keyring> {
    places.iter().find_map(|(_, verdict)| match verdict {
        Verdict::Used(keyring) => Some(keyring),
        _ => None,
    })
}

fn explain_image(keyring: &Keyring, image: Image, now: Timestamp) -> ImageExplanation {
    let Found { tried, passed_over, as_default } = keyring.look_up(&image);
    let is_one_of_several =
        |entry: &Entry| tried.iter().filter(|other| entry.is_filed_with(other)).count() > 1;
    let tried = tried.iter().map(|entry| Tried {
        key: shown(&entry.key),
        username: entry.credentials.username.clone(),
        state: state(entry, now),
        source: entry.record.as_ref().map(|record| record.source.clone()),
        in_random_order: is_one_of_several(entry),
        credentials: entry.credentials.clone(),
    });
    let tried = tried.collect();
    let passed_over = passed_over
        .into_iter()
        .map(|(entry, mismatch)| PassedOver { key: shown(&entry.key), mismatch })
        .collect();
    ImageExplanation { image, tried, passed_over, as_default, verification: None }
}

fn state(entry: &Entry, now: Timestamp) -> State {
    match &entry.record {
        _ if entry.is_empty() => State::Empty,
        Some(record) if record.expires_at <= now => State::Expired(record.expires_at),
        Some(record) => State::Valid(record.expires_at),
        None => State::Unknown,
    }
}
