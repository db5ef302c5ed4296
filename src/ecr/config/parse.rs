//! The text of AWS's shared `config` and `credentials` files, as sections of settings.
//!
//! The rules are those of the AWS SDKs: settings stand in sections, a line that starts with a space continues the setting
//! above it, `#` and `;` start comments. A line that breaks the rules makes the file unusable: what stands there may be the
//! identity that is meant.

use secrecy::zeroize::Zeroizing;
use std::fmt;

/// A section of a file.
#[derive(Debug)]
pub struct Section {
    /// What stands in the brackets.
    pub header: String,
    /// The line of the header, from 1.
    pub line: usize,
    /// The settings, in their order.
    pub settings: Vec<Setting>,
}

/// A setting: `name = value`.
pub struct Setting {
    /// The name in lower case.
    pub name: String,
    /// The value, which may be a secret. The lines of a value that goes on below are separated by `\n`.
    pub value: Zeroizing<String>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (line {})", self.name, self.line)
    }
}

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} {problem}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a line. Nothing of the line is shown: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// UTF-16, as some editors of Windows write it.
    #[error("is UTF-16 text: save the file as UTF-8")]
    Utf16,
    /// Any other encoding.
    #[error("is not UTF-8 text: save the file as UTF-8")]
    NotUtf8,
    /// A byte order mark.
    #[error("starts with a byte order mark: save the file as UTF-8 without it")]
    ByteOrderMark,
    /// A setting before the first section.
    #[error("stands before the first section: start with a line such as `[default]`")]
    OutsideSection,
    /// A continuation of nothing.
    #[error("starts with a space, but no setting stands above it to be continued: remove the space")]
    ContinuesNothing,
    /// A section without its end.
    #[error("starts a section and has no `]`")]
    OpenSection,
    /// Neither section nor setting.
    #[error("is neither a section nor a setting: expected `[NAME]` or `NAME = VALUE`")]
    NoEquals,
    /// A value without a name.
    #[error("has no name before the `=`")]
    NoName,
    /// A section that stands above, too.
    #[error("starts a section that stands further up, too: keep one of them")]
    SectionTwice,
    /// A setting that stands above in the same section, too.
    #[error("holds a setting that stands further up in its section, too: keep one of them")]
    SettingTwice,
}

/// Takes the text of a file apart.
///
/// # Errors
/// At the first line that breaks the rules.
pub fn parse(bytes: &[u8]) -> Result<Vec<Section>, ParseError> {
    let failed = |line, problem| ParseError { line, problem };
    if bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF") {
        return Err(failed(1, Problem::Utf16));
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        return Err(failed(1, Problem::ByteOrderMark));
    }
    let line_at = |end: usize| bytes[..end].split(|byte| *byte == b'\n').count();
    if let Some(nul) = bytes.iter().position(|byte| *byte == 0) {
        return Err(failed(line_at(nul), Problem::Utf16));
    }
    let text =
        std::str::from_utf8(bytes).map_err(|error| failed(line_at(error.valid_up_to()), Problem::NotUtf8))?;
    let mut sections: Vec<Section> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let failed = |problem| failed(number, problem);
        if line.trim_matches([' ', '\t']).is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let end = header.find(']').ok_or(failed(Problem::OpenSection))?;
            let rest = header[end + 1..].trim_start();
            if !rest.is_empty() && !rest.starts_with(['#', ';']) {
                return Err(failed(Problem::OpenSection));
            }
            let header = header[..end].trim().to_owned();
            if sections.iter().any(|section| section.header == header) {
                return Err(failed(Problem::SectionTwice));
            }
            sections.push(Section { header, line: number, settings: Vec::new() });
            continue;
        }
        let section = sections.last_mut().ok_or(failed(Problem::OutsideSection))?;
        if line.starts_with([' ', '\t']) {
            let setting = section.settings.last_mut().ok_or(failed(Problem::ContinuesNothing))?;
            setting.value.push('\n');
            setting.value.push_str(line.trim_matches([' ', '\t']));
            continue;
        }
        let (name, value) = without_comment(line).split_once('=').ok_or(failed(Problem::NoEquals))?;
        let name = name.trim().to_ascii_lowercase();
        if name.is_empty() {
            return Err(failed(Problem::NoName));
        }
        if section.settings.iter().any(|setting| setting.name == name) {
            return Err(failed(Problem::SettingTwice));
        }
        let value = Zeroizing::new(value.trim().to_owned());
        section.settings.push(Setting { name, value, line: number });
    }
    Ok(sections)
}

/// The line without a comment, which a space precedes.
fn without_comment(line: &str) -> &str {
    let comment = line.match_indices(['#', ';']).find(|(at, _)| line[..*at].ends_with([' ', '\t']));
    comment.map_or(line, |(at, _)| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(text: &str) -> Vec<(String, String, String, usize)> {
        let sections = parse(text.as_bytes()).unwrap();
        let flat = sections.iter().flat_map(|section| {
            section.settings.iter().map(|setting| {
                (section.header.clone(), setting.name.clone(), setting.value.to_string(), setting.line)
            })
        });
        flat.collect()
    }

    #[test]
    fn sections_settings_comments_and_continuations() {
        let text = "# comment\n\n[default]\nRegion = eu-west-1 # here\r\nkey=a#b;c\n[ profile one ] ; note\n\
                    ecr =\n  endpoint_url = http://x\n  # no comment here\nempty =\n";
        let expected = [
            ("default", "region", "eu-west-1", 4),
            ("default", "key", "a#b;c", 5),
            ("profile one", "ecr", "\nendpoint_url = http://x\n# no comment here", 7),
            ("profile one", "empty", "", 10),
        ];
        let expected: Vec<_> = expected
            .map(|(section, name, value, line)| (section.to_owned(), name.to_owned(), value.to_owned(), line))
            .into();
        assert_eq!(settings(text), expected);
        assert_eq!(settings(""), []);
    }

    #[test]
    fn a_file_that_breaks_the_rules_is_refused_with_line_and_reason() {
        let utf16: Vec<u8> = "[default]\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let cases: [(&[u8], usize, Problem); 14] = [
            (b"\xFF\xFE[\0", 1, Problem::Utf16),
            (&utf16, 1, Problem::Utf16),
            (b"[default]\n# \xE9t\xE9\n", 2, Problem::NotUtf8),
            (b"\xEF\xBB\xBF[default]\n", 1, Problem::ByteOrderMark),
            (b"a = b\n", 1, Problem::OutsideSection),
            (b"  a = b\n", 1, Problem::OutsideSection),
            (b"[default]\n  a = b\n", 2, Problem::ContinuesNothing),
            (b"\n[default\n", 2, Problem::OpenSection),
            (b"[default] x\n", 1, Problem::OpenSection),
            (b"[default]\na = b\nkey\n", 3, Problem::NoEquals),
            (b"[default]\nname # = b\n", 2, Problem::NoEquals),
            (b"[default]\n= b\n", 2, Problem::NoName),
            (b"[a]\n[b]\n[ a ]\n", 3, Problem::SectionTwice),
            (b"[a]\nX = 1\nx = 2\n", 3, Problem::SettingTwice),
        ];
        for (bytes, line, problem) in cases {
            assert_eq!(parse(bytes).unwrap_err(), ParseError { line, problem });
        }
        let error = parse(b"[a]\nsecret").unwrap_err().to_string();
        assert_eq!(error, "line 2 is neither a section nor a setting: expected `[NAME]` or `NAME = VALUE`");
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes).ok();
        }

        #[test]
        fn what_is_written_is_read(value in "[!-~]([ -~]{0,30}[!-~])?") {
            prop_assume!(!format!(" {value}").contains(" #") && !format!(" {value}").contains(" ;"));
            let text = format!("[default]\nname = {value}\n");
            prop_assert_eq!(&settings(&text)[0].2, &value);
        }
    }
}
