//! The setting that says where policies come from.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where policies come from: `policy: allow_all`, `policy: deny_all`, or `policy: { files: [policies/*.cedar] }`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PolicySource {
    /// None at all, and nothing is allowed: what holds when nothing is said.
    #[default]
    DenyAll,
    /// None at all, and everything is allowed.
    AllowAll,
    /// Cedar files, by glob patterns; a relative one is seen from the process's working folder.
    Files(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    #[serde(default)]
    files: Vec<String>,
}

impl<'de> Deserialize<'de> for PolicySource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Source;
        impl<'de> Visitor<'de> for Source {
            type Value = PolicySource;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`allow_all`, `deny_all`, or `files: [policies/*.cedar]`")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<PolicySource, E> {
                match word {
                    "allow_all" => Ok(PolicySource::AllowAll),
                    "deny_all" => Ok(PolicySource::DenyAll),
                    _ => Err(E::unknown_variant(word, &["allow_all", "deny_all"])),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PolicySource, A::Error> {
                Files::deserialize(MapAccessDeserializer::new(map)).map(|files| PolicySource::Files(files.files))
            }
        }
        deserializer.deserialize_any(Source)
    }
}

impl Serialize for PolicySource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::DenyAll => serializer.serialize_str("deny_all"),
            Self::AllowAll => serializer.serialize_str("allow_all"),
            Self::Files(files) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("files", files)?;
                map.end()
            }
        }
    }
}
