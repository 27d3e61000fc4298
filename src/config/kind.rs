//! Which program a configuration is for, by its keys.

use super::fault::Collector;
use super::tree::{self, Value};

/// Which program a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `mcpg control-plane`.
    ControlPlane,
    /// `mcpg gateway`.
    Gateway,
}

/// Keys that only one of the two has.
const CONTROL_PLANE: [&str; 9] =
    ["name", "storage", "orgs", "tokens", "audit", "commit", "flush", "public_url", "session"];
const GATEWAY: [&str; 8] =
    ["control_plane", "identity", "instance", "observability", "org", "plugins", "policy", "workspace"];

impl Kind {
    /// The kind that most of the file's own keys speak for; the control plane's where they speak for neither. A file
    /// that cannot be read at all is taken for the control plane's, whose reader then says what is wrong.
    pub fn of(text: &str) -> Self {
        let root = tree::parse(text, &mut Collector::new(""));
        let Some(Value::Map(entries)) = root.map(|root| root.value) else { return Self::ControlPlane };
        let count = |keys: &[&str]| entries.iter().filter(|entry| keys.contains(&entry.key.as_str())).count();
        if count(&GATEWAY) > count(&CONTROL_PLANE) { Self::Gateway } else { Self::ControlPlane }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn the_reference_files_are_told_apart() {
        assert_eq!(Kind::of(include_str!("../../deploy/control-plane.yaml")), Kind::ControlPlane);
        assert_eq!(Kind::of(include_str!("../../deploy/gateway.yaml")), Kind::Gateway);
    }

    #[test]
    fn a_file_of_common_keys_or_none_is_the_control_planes() {
        for text in ["", "listen: 127.0.0.1:1", "- a", "a: [", "limits: {}\ntelemetry: {}"] {
            assert_eq!(Kind::of(text), Kind::ControlPlane, "{text:?}");
        }
    }

    #[test]
    fn one_misplaced_key_does_not_change_the_kind() {
        assert_eq!(Kind::of("plugins: []\nidentity: {}\ntokens: []"), Kind::Gateway);
    }
}
