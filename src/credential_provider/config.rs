//! The kubelet's configuration for this plugin, a `CredentialProviderConfig`.
//!
//! Pure.

use super::decide::ROLE_ANNOTATION;
use std::fmt::Write as _;

/// The plugin's name, which is the name of the program in the kubelet's directory of plugins.
const NAME: &str = "ecr-node-agent";

/// What the configuration says.
#[derive(Debug, Default)]
pub struct PluginConfig {
    /// The hosts or patterns of the images that the kubelet asks this plugin about.
    pub match_images: Vec<String>,
    /// The plugin's arguments.
    pub arguments: Vec<String>,
    /// The environment variables that the kubelet sets for the plugin, besides its own.
    pub variables: Vec<(String, String)>,
    /// The names of variables that hold secrets, and therefore are not part of the configuration.
    pub secret_variables: Vec<String>,
    /// The audience of the service account tokens that the kubelet sends; `None` if it sends none.
    pub token_audience: Option<String>,
}

impl PluginConfig {
    /// The configuration as YAML.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut yaml = String::new();
        for variable in &self.secret_variables {
            line(
                &mut yaml,
                0,
                &format!("# {variable} is not here, because it holds a secret: set it for the kubelet"),
            );
        }
        line(&mut yaml, 0, "apiVersion: kubelet.config.k8s.io/v1");
        line(&mut yaml, 0, "kind: CredentialProviderConfig");
        line(&mut yaml, 0, "providers:");
        line(&mut yaml, 0, &format!("- name: {NAME}"));
        line(&mut yaml, 2, "apiVersion: credentialprovider.kubelet.k8s.io/v1");
        list(&mut yaml, "args", &self.arguments);
        if !self.variables.is_empty() {
            line(&mut yaml, 2, "env:");
            for (name, value) in &self.variables {
                line(&mut yaml, 2, &format!("- name: {}", text(name)));
                line(&mut yaml, 4, &format!("value: {}", text(value)));
            }
        }
        list(&mut yaml, "matchImages", &self.match_images);
        // Required, but every answer names its own.
        line(&mut yaml, 2, "defaultCacheDuration: 0s");
        if let Some(audience) = &self.token_audience {
            line(&mut yaml, 2, "tokenAttributes:");
            line(&mut yaml, 4, &format!("serviceAccountTokenAudience: {}", text(audience)));
            // One answer for all pods of a service account, and for no other's.
            line(&mut yaml, 4, "cacheType: ServiceAccount");
            // Static pods have no service account, and get the node's credential.
            line(&mut yaml, 4, "requireServiceAccount: false");
            line(&mut yaml, 4, "optionalServiceAccountAnnotationKeys:");
            line(&mut yaml, 4, &format!("- {}", text(ROLE_ANNOTATION)));
        }
        yaml
    }
}

fn list(yaml: &mut String, name: &str, values: &[String]) {
    line(yaml, 2, &format!("{name}:"));
    for value in values {
        line(yaml, 2, &format!("- {}", text(value)));
    }
}

fn line(yaml: &mut String, indent: usize, text: &str) {
    // A string takes everything.
    writeln!(yaml, "{:indent$}{text}", "").ok();
}

/// A string in quotes: JSON's are YAML's, too.
fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(config: &PluginConfig) -> Value {
        let yaml = config.to_yaml();
        serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
    }

    #[test]
    fn the_configuration_is_yaml_with_every_value_as_it_is() {
        let odd = [
            "*",
            "yes",
            "1",
            "a: b",
            "# c",
            "\"quoted\" \\ 'text'",
            " x ",
            "line\nline",
            "ü",
            "{}",
            "- a",
            "",
        ];
        let config = PluginConfig {
            match_images: odd.map(str::to_owned).to_vec(),
            arguments: vec!["credential-provider".to_owned()],
            variables: odd.iter().map(|text| ("NAME".to_owned(), (*text).to_owned())).collect(),
            secret_variables: vec!["AWS_SECRET_ACCESS_KEY".to_owned()],
            token_audience: Some("sts.amazonaws.com".to_owned()),
        };
        let expected = json!({
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": [{
                "name": "ecr-node-agent",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "args": ["credential-provider"],
                "env": odd.map(|text| json!({ "name": "NAME", "value": text })),
                "matchImages": odd,
                "defaultCacheDuration": "0s",
                "tokenAttributes": {
                    "serviceAccountTokenAudience": "sts.amazonaws.com",
                    "cacheType": "ServiceAccount",
                    "requireServiceAccount": false,
                    "optionalServiceAccountAnnotationKeys": ["eks.amazonaws.com/ecr-role-arn"],
                },
            }],
        });
        assert_eq!(read(&config), expected);
        assert!(config.to_yaml().starts_with("# AWS_SECRET_ACCESS_KEY is not here"));
        let short =
            PluginConfig { match_images: vec!["public.ecr.aws".to_owned()], ..PluginConfig::default() };
        let provider = read(&short)["providers"][0].clone();
        assert_eq!((&provider["env"], &provider["tokenAttributes"]), (&Value::Null, &Value::Null));
    }
}
