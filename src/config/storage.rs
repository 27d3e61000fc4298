//! The setting that says where everything durable lives.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

/// Where everything durable lives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// The object store.
    pub url: StorageUrl,
}

/// Which object store: `file:///folder`, a bare path, or `memory://`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StorageUrl {
    /// A folder on this machine. A relative path is seen from the process's working folder.
    Folder(PathBuf),
    /// Memory, gone with the process: for tests and trials.
    Memory,
}

/// Why a text is no storage URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no storage: {reason}")]
pub struct StorageUrlError {
    text: String,
    reason: &'static str,
}

impl Default for StorageUrl {
    fn default() -> Self {
        Self::Folder(PathBuf::from("./mcpg-data/store"))
    }
}

impl FromStr for StorageUrl {
    type Err = StorageUrlError;

    fn from_str(text: &str) -> Result<Self, StorageUrlError> {
        let fault = |reason| StorageUrlError { text: text.to_owned(), reason };
        match text.split_once("://") {
            None if text.is_empty() => Err(fault("write a folder, file:///folder or memory://")),
            None => Ok(Self::Folder(PathBuf::from(text))),
            Some(("memory", "" | "/")) => Ok(Self::Memory),
            Some(("memory", _)) => Err(fault("memory:// takes no path")),
            Some(("file", _)) => {
                let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
                path.map(Self::Folder).ok_or_else(|| {
                    fault("a file URL has three slashes and an absolute path, like file:///var/lib/mcpg")
                })
            }
            Some(_) => Err(fault("this version stores in a folder (file:///folder) or in memory (memory://)")),
        }
    }
}

impl TryFrom<String> for StorageUrl {
    type Error = StorageUrlError;

    fn try_from(text: String) -> Result<Self, StorageUrlError> {
        text.parse()
    }
}

impl From<StorageUrl> for String {
    fn from(url: StorageUrl) -> Self {
        url.to_string()
    }
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Memory => f.write_str("memory://"),
        }
    }
}

impl fmt::Debug for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::StorageUrl;

    #[test]
    fn a_storage_is_a_folder_a_file_url_or_memory() {
        for (text, url) in [
            ("/data", StorageUrl::Folder("/data".into())),
            ("data/x", StorageUrl::Folder("data/x".into())),
            ("file:///data", StorageUrl::Folder("/data".into())),
            ("memory://", StorageUrl::Memory),
        ] {
            assert_eq!(text.parse::<StorageUrl>().unwrap(), url, "{text}");
        }
        for bad in ["", "s3://bucket/x", "file://data", "memory://x"] {
            assert!(bad.parse::<StorageUrl>().is_err(), "{bad}");
        }
    }
}
