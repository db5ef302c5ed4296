//! Whether a file plainly belongs to another program, so that `--auth-file` names the wrong one.
//!
//! A damaged docker config is repaired. A kubelet configuration, a kubeconfig or a YAML file is not damaged: it is
//! something else, and replacing it would break the program that reads it.

use super::json::{self, Member};

/// Longer values of `kind` and `apiVersion` are not shown.
const LONGEST_SHOWN: usize = 64;

/// What the file is, as a noun with its article, if it plainly is no docker config.
#[must_use]
pub fn recognise(text: &str) -> Option<String> {
    let text = text.trim_start_matches('\u{FEFF}');
    if json::trim(text).starts_with('{') {
        return recognise_json(json::trim(text));
    }
    recognise_lines(text)
}

/// A JSON object with `kind` or `apiVersion`, as Kubernetes' objects have them, and no `auths`.
fn recognise_json(text: &str) -> Option<String> {
    let members = json::members(text).ok()?;
    let is_field = |member: &Member<'_>, field| {
        json::string(member.name).is_some_and(|name| json::is_field(&name, field))
    };
    if members.iter().any(|member| is_field(member, "auths")) {
        return None;
    }
    let value = |field: &str| {
        let member = members.iter().find(|member| json::string(member.name).as_deref() == Some(field))?;
        json::string(member.value)
    };
    kubernetes_object(value("kind").as_deref(), value("apiVersion").as_deref())
}

/// YAML, or settings in the form `key = value`. JSON that ends too early has no such lines.
fn recognise_lines(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let top: Vec<&str> = lines.filter(|line| !line.starts_with([' ', '\t'])).collect();
    let value =
        |field: &str| top.iter().find_map(|line| line.strip_prefix(field)?.strip_prefix(": ").map(unquoted));
    if let Some(object) = kubernetes_object(value("kind"), value("apiVersion")) {
        return Some(object);
    }
    let is_mark = |line: &&&str| matches!(**line, "---" | "...") || line.starts_with("%YAML");
    let is_yaml = |line: &&str| yaml_key(line) || *line == "-" || line.starts_with("- ");
    let is_setting = |line: &&str| {
        let (key, _) = line.split_once('=').unwrap_or_default();
        is_word(key.trim_end()) || line.starts_with('[') && line.ends_with(']')
    };
    let content: Vec<&str> = top.iter().filter(|line| !is_mark(line)).copied().collect();
    let has_mark = content.len() < top.len();
    // One line alone may be an error message that a script has written there: `Error: access denied`.
    let is_enough = |count: usize| count > usize::from(!has_mark);
    if is_enough(content.len()) && content.iter().all(is_yaml) {
        return Some("a YAML file".to_owned());
    }
    (content.len() > 1 && content.iter().all(is_setting)).then(|| "a file of settings".to_owned())
}

/// `key:` or `key: value`.
fn yaml_key(line: &str) -> bool {
    let (key, value) = line.split_once(':').unwrap_or_default();
    is_word(unquoted(key)) && (value.is_empty() || value.starts_with(' '))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c))
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}

fn kubernetes_object(kind: Option<&str>, version: Option<&str>) -> Option<String> {
    let shown = |text: &str| is_word(text) && text.len() <= LONGEST_SHOWN;
    match (kind, version) {
        (None, None) => None,
        (Some(kind), _) if shown(kind) => Some(format!("a Kubernetes object of kind {kind}")),
        (_, Some(version)) if shown(version) => Some(format!("a Kubernetes object of {version}")),
        _ => Some("a Kubernetes object".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_files_are_recognised_and_damaged_docker_configs_are_not() {
        let cases = [
            (
                "apiVersion: kubelet.config.k8s.io/v1beta1\nauthentication:\n  x509:\n    a: b\nkind: KubeletConfiguration\n",
                Some("a Kubernetes object of kind KubeletConfiguration"),
            ),
            (
                "# managed by kubeadm\n---\nkind: \"Config\"\nclusters:\n- cluster:\n    server: https://a\n",
                Some("a Kubernetes object of kind Config"),
            ),
            (
                "{\"kind\":\"CredentialProviderConfig\",\"apiVersion\":\"kubelet.config.k8s.io/v1\",\"providers\":[]}",
                Some("a Kubernetes object of kind CredentialProviderConfig"),
            ),
            (" {\n\"apiVersion\": \"v1\"}", Some("a Kubernetes object of v1")),
            ("{\"kind\":\"a b\\n\"}", Some("a Kubernetes object")),
            ("a: 1\nb:\n  - c\n", Some("a YAML file")),
            ("---\nauths: {}\n", Some("a YAML file")),
            ("# a comment\na: 1\n\nb: 2\n", Some("a YAML file")),
            ("{\"apiVersion\":\"a b\"}", Some("a Kubernetes object")),
            ("version = 2\n[plugins]\n  a = 1\n", Some("a file of settings")),
            // A docker config, whole or damaged, or no text of another program's.
            ("", None),
            ("{}", None),
            ("{\"auths\":{},\"kind\":\"x\"}", None),
            ("{\"auths\":{\"kind\": \"x\"}", None),
            ("{\"kind\": \"x\",\n\"auths\": {", None),
            ("{\"kind\":1}", None),
            ("null", None),
            ("not JSON", None),
            ("Error: access denied\n", None),
            ("QVdTOnN1cGVyc2VjcmV0==", None),
            ("\"kind: x\"", None),
            ("[\n1\n]", None),
            ("[a\nb = 1\n", None),
            ("<html>\n<body>\n", None),
            ("\u{0}\u{0}\u{0}", None),
            ("\u{C}", None),
        ];
        for (text, expected) in cases {
            assert_eq!(recognise(text).as_deref(), expected, "{text}");
        }
    }
}
