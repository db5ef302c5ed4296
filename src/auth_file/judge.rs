//! What a file holds, by the kubelet's rules (no I/O).

use crate::docker_config::document::Document;
use crate::docker_config::ledger::Record;
use crate::docker_config::parse::{self, Defect, ParseError, Parsed};
use crate::docker_config::{json, other_program};
use std::collections::BTreeMap;

/// What a file holds.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// There is no file.
    Missing,
    /// The file is empty, or holds only white space.
    Empty,
    /// A docker config that the kubelet accepts.
    Whole(Document<'a>),
    /// A docker config that the kubelet ignores because of some of its entries or fields.
    Defective {
        /// The document without them.
        rest: Document<'a>,
        /// Why the kubelet ignores it.
        reasons: Vec<String>,
    },
    /// No docker config: damaged, or only half written.
    Broken {
        /// Why the kubelet ignores it.
        reason: String,
    },
    /// The kubelet accepts it, and the agent could not write it again unchanged.
    CannotPreserve(&'static str),
    /// A file of another program: a noun with its article.
    OtherProgram(String),
}

impl Content<'_> {
    /// The records of the agent's entries in it.
    pub(super) fn own_records(&self) -> BTreeMap<String, Record> {
        match self {
            Self::Whole(document) | Self::Defective { rest: document, .. } => document.own_records(),
            Self::Missing
            | Self::Empty
            | Self::Broken { .. }
            | Self::CannotPreserve(_)
            | Self::OtherProgram(_) => BTreeMap::new(),
        }
    }
}

/// Judges the content of a file, or that it is missing.
pub(super) fn judge(bytes: Option<&[u8]>) -> Content<'_> {
    let Some(bytes) = bytes else { return Content::Missing };
    // JSON's white space, which is less than that of ASCII: a form feed is content.
    let text = std::str::from_utf8(bytes).unwrap_or("?");
    if json::trim(text).is_empty() {
        return Content::Empty;
    }
    if let Some(what) = other_program::recognise(text) {
        return Content::OtherProgram(what);
    }
    match parse::parse(bytes) {
        Ok(Parsed { document, defects, .. }) if defects.is_empty() => Content::Whole(document),
        Ok(Parsed { document, defects, .. }) => {
            Content::Defective { rest: document, reasons: defects.iter().map(Defect::to_string).collect() }
        }
        Err(ParseError::CannotPreserve(why)) => Content::CannotPreserve(why),
        Err(invalid @ ParseError::Invalid(_)) => Content::Broken { reason: invalid.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_judged_as_the_kubelet_judges_it() {
        let kind = |bytes: Option<&[u8]>| match judge(bytes) {
            Content::Missing => "missing",
            Content::Empty => "empty",
            Content::Whole(_) => "whole",
            Content::Defective { .. } => "defective",
            Content::Broken { .. } => "broken",
            Content::CannotPreserve(_) => "cannot preserve",
            Content::OtherProgram(_) => "other program",
        };
        let cases: [(&[u8], &str); 8] = [
            (b"", "empty"),
            (b" \r\n\t", "empty"),
            (b"\x0C", "broken"),
            (b"{\"auths\":{\"a.b\":{\"auth\":\"dTpw\"}}}", "whole"),
            (b"{\"auths\":{\"a.b\":{\"auth\":\"!\"}}}", "defective"),
            (b"{\"auths\":{", "broken"),
            (b"{\"x\":\"\xFF\"}", "cannot preserve"),
            (b"kind: Config\n", "other program"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(kind(Some(bytes)), expected, "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(kind(None), "missing");
    }
}
