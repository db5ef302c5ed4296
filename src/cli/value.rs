//! Values of options, before they are checked together.

use jiff::SignedDuration;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// One value on the command line, or several with white space between them in a variable. An empty variable gives none.
#[derive(Debug, Clone)]
pub(super) struct Listed<T> {
    /// The text as one value; `None` if it is not one.
    whole: Option<T>,
    /// The text as a list; `None` if a part of it is no value.
    parts: Option<Vec<T>>,
}

impl<T: FromStr> FromStr for Listed<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let whole = text.parse().ok();
        match text.split_whitespace().map(str::parse).collect() {
            Ok(parts) => Ok(Self { whole, parts: Some(parts) }),
            Err(_) if whole.is_some() => Ok(Self { whole, parts: None }),
            Err(error) => Err(error),
        }
    }
}

impl<T> Listed<T> {
    /// The values of an option, which came from its variable or from the command line. `None` if a text on the command line
    /// is a list, or a text in the variable is not.
    pub(super) fn all(listed: Vec<Self>, from_variable: bool) -> Option<Vec<T>> {
        if !from_variable {
            return listed.into_iter().map(|listed| listed.whole).collect();
        }
        let lists: Option<Vec<Vec<T>>> = listed.into_iter().map(|listed| listed.parts).collect();
        lists.map(|lists| lists.into_iter().flatten().collect())
    }
}

/// A value, or none if the text is empty, as templates leave a variable.
#[derive(Debug, Clone)]
pub(super) struct Maybe<T>(pub(super) Option<T>);

impl<T: FromStr> FromStr for Maybe<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Some(text).filter(|text| !text.is_empty()).map(str::parse).transpose().map(Self)
    }
}

/// Reads a duration such as `90s`, `1h30m` or `PT11H`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let example = "expected a duration such as `90s` or `1h30m`";
    let duration: SignedDuration = text.parse().map_err(|_| example.to_owned())?;
    Duration::try_from(duration).map_err(|_| format!("a duration cannot be negative: {example}"))
}

/// Reads an address to listen on, or none if the text is empty.
pub(super) fn socket_address(text: &str) -> Result<Maybe<SocketAddr>, String> {
    let example = "expected an IP address and a port, such as `127.0.0.1:9797` or `[::]:9797`";
    text.parse().map_err(|_| example.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn durations_have_a_unit_and_no_sign() {
        let cases = [
            ("60s", Some(60)),
            ("1h30m", Some(5400)),
            ("PT11H", Some(39_600)),
            ("0s", Some(0)),
            ("5", None),
            ("-5s", None),
            ("", None),
            ("soon", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(duration(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn only_a_variable_is_a_list() {
        let path = |text: &str| vec![text.parse::<Listed<PathBuf>>().unwrap()];
        let spaced = "/var/lib/my kubelet/config.json";
        assert_eq!(Listed::all(path(spaced), false), Some(vec![PathBuf::from(spaced)]));
        assert_eq!(Listed::all(path("/a /b"), true), Some(vec!["/a".into(), "/b".into()]));
        assert_eq!(Listed::all(path(" "), true), Some(Vec::new()));
        let number = |text: &str| text.parse::<Listed<u8>>();
        assert_eq!(Listed::all(vec![number("1 2").unwrap()], false), None);
        assert!(number("1 x").is_err());
    }
}
