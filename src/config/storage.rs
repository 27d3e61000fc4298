//! The settings that say where everything durable lives.
//!
//! A folder and memory take a URL alone. An S3 bucket takes more; what the file leaves out comes from the environment
//! variables of the AWS tools and from the identity of the instance, the pod or the task. Which settings go together is
//! checked when the file is read, each fault at the line of the setting that has to change.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use url::Url;

use super::check::Check;
use super::{Endpoint, Secret};

/// Where everything durable lives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// The object store.
    pub url: StorageUrl,
    /// The S3 service, where it is not that of AWS.
    pub endpoint: Option<Endpoint>,
    /// The region that requests are signed for.
    pub region: Option<String>,
    /// Whether the bucket is a part of the path (`endpoint/bucket/key`) and not of the host (`bucket.endpoint/key`). By
    /// default it is with an endpoint, and where the bucket's name has a dot.
    pub path_style: Option<bool>,
    /// Whether the endpoint may be `http://`, which anyone on the way can read.
    pub allow_http: Option<bool>,
    /// The authorities, in PEM, one of which the endpoint's certificate must come from; none: those the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The key that requests are signed with.
    pub access_key_id: Option<String>,
    /// Its secret.
    pub secret_access_key: Option<Secret>,
    /// The session that a temporary key belongs to.
    pub session_token: Option<Secret>,
    /// How the service encrypts each object, where the bucket's own default is not to be relied on.
    pub sse: Option<ServerSideEncryption>,
    /// The key of `aws:kms`; none: the account's own key for S3.
    pub sse_kms_key_id: Option<String>,
}

/// How the S3 service encrypts what it stores, in the words of its own header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerSideEncryption {
    /// SSE-S3: with keys of the service.
    #[serde(rename = "AES256")]
    Aes256,
    /// SSE-KMS: with a key of the key management service.
    #[serde(rename = "aws:kms")]
    Kms,
}

impl ServerSideEncryption {
    /// The value of the header `x-amz-server-side-encryption`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aes256 => "AES256",
            Self::Kms => "aws:kms",
        }
    }
}

/// Which object store: `file:///folder`, a bare path, `s3://bucket/prefix`, or `memory://`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StorageUrl {
    /// A folder on this machine. A relative path is seen from the process's working folder.
    Folder(PathBuf),
    /// Memory, gone with the process: for tests and trials.
    Memory,
    /// A bucket of S3, or of a service that speaks its protocol.
    S3 {
        /// The bucket.
        bucket: String,
        /// What every key begins with, without slashes at its ends; empty: the whole bucket.
        prefix: String,
    },
}

impl StorageUrl {
    /// Whether a request to it crosses a network: writes are slow and cost money, so that they are made fewer and
    /// larger by default.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::S3 { .. })
    }
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
        let fault = |reason| StorageUrlError { text: without_credentials(text).into_owned(), reason };
        match text.split_once("://") {
            None if text.is_empty() => Err(fault("write a folder, file:///folder, s3://bucket/prefix or memory://")),
            None => Ok(Self::Folder(PathBuf::from(text))),
            Some(("memory", "" | "/")) => Ok(Self::Memory),
            Some(("memory", _)) => Err(fault("memory:// takes no path")),
            Some(("file", _)) => {
                let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
                path.map(Self::Folder).ok_or_else(|| {
                    fault("a file URL has three slashes and an absolute path, like file:///var/lib/mcpg")
                })
            }
            Some(("s3", place)) => bucket_and_prefix(place).map_err(fault),
            Some(("gs" | "gcs" | "az" | "azure" | "abfs" | "abfss" | "adl", _)) => Err(fault(
                "Google Cloud Storage and Azure are not offered; use a folder (file:///folder) or a bucket of S3 \
                 (s3://bucket/prefix)",
            )),
            Some(_) => Err(fault(
                "its scheme is not supported; use a folder (file:///folder), a bucket of S3 (s3://bucket/prefix) or \
                 memory (memory://)",
            )),
        }
    }
}

/// Takes `bucket/prefix` apart.
fn bucket_and_prefix(place: &str) -> Result<StorageUrl, &'static str> {
    if place.contains('@') {
        return Err(
            "credentials do not belong into the URL; set storage.access_key_id and storage.secret_access_key, or \
             leave them to the environment",
        );
    }
    if place.contains(['?', '#']) {
        return Err("a bucket's URL is s3://bucket/prefix, without `?` and `#`; the options are settings beside `url`");
    }
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.contains(':') {
        return Err("a bucket's URL is s3://bucket/prefix; host and port of the service are the setting `endpoint`");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(allowed) {
        return Err("a bucket's name is 3 to 63 letters, digits, '-' and '.', as in s3://bucket/prefix");
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    // What would be escaped in a key is refused: the key in the bucket would not be what the URL says.
    let plain = prefix.is_empty()
        || Path::parse(prefix).is_ok_and(|path| path.as_ref() == prefix && path == Path::from(prefix));
    if !plain || !prefix.is_ascii() || prefix.contains(' ') {
        return Err("a prefix is names of plain letters, digits and '-_.=', parted by single slashes");
    }
    Ok(StorageUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// The URL without what stands before an `@`, which may be a secret.
fn without_credentials(text: &str) -> Cow<'_, str> {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => Cow::Owned(format!("{scheme}://[credentials]@{place}")),
        _ => Cow::Borrowed(text),
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
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl fmt::Debug for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<StorageUrl> for Storage {
    /// The store of a URL alone: all else comes from the environment.
    fn from(url: StorageUrl) -> Self {
        Self { url, ..Self::default() }
    }
}

impl Storage {
    /// The settings beside the URL that are set, by name.
    fn options(&self) -> impl Iterator<Item = &'static str> {
        let options = [
            ("endpoint", self.endpoint.is_some()),
            ("region", self.region.is_some()),
            ("path_style", self.path_style.is_some()),
            ("allow_http", self.allow_http.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("access_key_id", self.access_key_id.is_some()),
            ("secret_access_key", self.secret_access_key.is_some()),
            ("session_token", self.session_token.is_some()),
            ("sse", self.sse.is_some()),
            ("sse_kms_key_id", self.sse_kms_key_id.is_some()),
        ];
        options.into_iter().filter_map(|(name, set)| set.then_some(name))
    }
}

impl Check<'_, '_> {
    /// The settings of a store, at `path`.
    pub(super) fn storage(&mut self, path: &str, storage: &Storage) {
        if !storage.url.is_remote() {
            for option in storage.options() {
                let message = "of use with an s3:// URL alone; remove it, or store in a bucket";
                self.fault(&format!("{path}.{option}"), message);
            }
            return;
        }
        self.storage_endpoint(path, storage);
        self.storage_credentials(path, storage);
        if storage.region.as_ref().is_some_and(|region| !is_region(region)) {
            self.fault(&format!("{path}.region"), "no region; it is written like eu-central-1");
        }
        if storage.sse_kms_key_id.is_some() && storage.sse != Some(ServerSideEncryption::Kms) {
            self.fault(
                &format!("{path}.sse_kms_key_id"),
                "of use with `sse: aws:kms` alone; add that, or remove the key",
            );
        }
    }

    fn storage_endpoint(&mut self, path: &str, storage: &Storage) {
        let Some(endpoint) = &storage.endpoint else { return };
        let at = format!("{path}.endpoint");
        self.url(&at, endpoint, "an S3 service");
        let bare = matches!(endpoint.path(), "" | "/") && endpoint.query().is_none() && endpoint.fragment().is_none();
        if !bare || !endpoint.username().is_empty() || endpoint.password().is_some() {
            self.fault(&at, "more than scheme, host and port; the bucket and the prefix stand in `url`");
        }
        let https = endpoint.scheme() == "https";
        if endpoint.scheme() == "http" && storage.allow_http != Some(true) {
            let message = "http://: data and signed requests would cross the network unencrypted; make it https://, or set \
                 `allow_http: true`";
            self.fault(&at, message);
        }
        if https && storage.allow_http == Some(true) {
            let message = "of no use with an https:// endpoint; remove it";
            self.fault(&format!("{path}.allow_http"), message);
        }
        if !https && storage.ca_file.is_some() {
            let message = "the endpoint is http://, where no certificate is looked at; make it https://";
            self.fault(&format!("{path}.ca_file"), message);
        }
    }

    fn storage_credentials(&mut self, path: &str, storage: &Storage) {
        let blank = |text: &str| text.trim().is_empty() || text.contains(char::is_whitespace);
        let (id, secret) = (&storage.access_key_id, &storage.secret_access_key);
        match (id, secret) {
            (Some(_), None) => {
                self.fault(&format!("{path}.access_key_id"), "without its secret; add `secret_access_key`");
            }
            (None, Some(_)) => {
                self.fault(&format!("{path}.secret_access_key"), "without its key; add `access_key_id`");
            }
            (None, None) if storage.session_token.is_some() => {
                let message = "without the key that it belongs to; add `access_key_id` and `secret_access_key`";
                self.fault(&format!("{path}.session_token"), message);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        let secrets = [("secret_access_key", secret), ("session_token", &storage.session_token)];
        let mut texts = vec![("access_key_id", id.as_deref())];
        texts.extend(secrets.map(|(name, secret)| (name, secret.as_ref().map(Secret::expose))));
        for (name, text) in texts {
            if text.is_some_and(blank) {
                self.fault(&format!("{path}.{name}"), "empty, or with blanks in it");
            }
        }
    }
}

fn is_region(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::{Storage, StorageUrl};
    use crate::config::ControlPlane;

    fn s3(bucket: &str, prefix: &str) -> StorageUrl {
        StorageUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() }
    }

    #[test]
    fn a_storage_is_a_folder_a_file_url_a_bucket_or_memory() {
        for (text, url) in [
            ("/data", StorageUrl::Folder("/data".into())),
            ("data/x", StorageUrl::Folder("data/x".into())),
            ("file:///data", StorageUrl::Folder("/data".into())),
            ("memory://", StorageUrl::Memory),
            ("s3://bucket", s3("bucket", "")),
            ("s3://bucket/", s3("bucket", "")),
            ("s3://my.bucket-1/a/b=c/", s3("my.bucket-1", "a/b=c")),
        ] {
            assert_eq!(text.parse::<StorageUrl>().unwrap(), url, "{text}");
            assert_eq!(url.to_string().parse::<StorageUrl>().unwrap(), url, "{text}");
        }
        for bad in ["", "file://data", "memory://x", "s3://", "s3://ab", "s3:///x", "s3://b_u:80/x"] {
            assert!(bad.parse::<StorageUrl>().is_err(), "{bad}");
        }
        for prefix in ["/x", "a//b", "../x", "a b", "ä", "a%20b"] {
            let bad = format!("s3://bucket/{prefix}");
            assert!(bad.parse::<StorageUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn stores_that_are_not_offered_are_refused_by_name() {
        for url in ["gs://bucket/x", "az://container/x", "abfss://c@account.dfs.core.windows.net/x"] {
            let message = url.parse::<StorageUrl>().unwrap_err().to_string();
            assert!(message.contains("not offered") && message.contains("s3://"), "{message}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        let message = "s3://AKIA:canary@bucket/x".parse::<StorageUrl>().unwrap_err().to_string();
        assert!(message.contains("access_key_id") && !message.contains("canary"), "{message}");
    }

    fn parse(storage: &str) -> Result<Storage, Vec<String>> {
        let read = ControlPlane::parse("f", &format!("storage:\n{storage}"), &|_| None);
        read.map(|read| read.storage).map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[track_caller]
    fn only_fault(storage: &str, starts: &str) {
        let found = parse(storage).unwrap_err();
        assert!(found.len() == 1 && found[0].starts_with(starts), "{found:?} do not start with {starts:?}");
    }

    #[test]
    fn every_setting_of_a_bucket_is_taken() {
        let storage = parse(
            "  url: s3://bucket/x\n  endpoint: https://s3.example.com\n  region: eu-central-1\n  path_style: false\n  \
             allow_http: false\n  ca_file: ca.pem\n  access_key_id: a\n  secret_access_key: b\n  session_token: c\n  \
             sse: aws:kms\n  sse_kms_key_id: k",
        );
        assert_eq!(storage.unwrap().options().count(), 10);
        parse("  url: s3://bucket\n  sse: AES256").unwrap();
        parse("  url: s3://bucket\n  sse: aws:kms").unwrap();
        parse("  url: s3://bucket\n  endpoint: http://localhost:9000\n  allow_http: true").unwrap();
    }

    #[test]
    fn settings_that_do_not_go_together_are_faults_at_their_lines() {
        for (storage, starts) in [
            ("  url: /data\n  region: x", "f:3:11: storage.region: of use with an s3:// URL alone"),
            ("  sse: AES256", "f:2:8: storage.sse: of use with an s3:// URL alone"),
            ("  url: s3://bucket\n  endpoint: http://h", "f:3:13: storage.endpoint: http://: data and signed requests"),
            ("  url: s3://bucket\n  endpoint: ftp://h", "f:3:13: storage.endpoint: neither an http://"),
            ("  url: s3://bucket\n  endpoint: https://h/bucket", "f:3:13: storage.endpoint: more than scheme, host"),
            ("  url: s3://bucket\n  endpoint: https://h\n  allow_http: true", "f:4:15: storage.allow_http: of no use"),
            (
                "  url: s3://bucket\n  endpoint: http://h\n  allow_http: true\n  ca_file: c",
                "f:5:12: storage.ca_file: the endpoint is http://",
            ),
            ("  url: s3://bucket\n  access_key_id: a", "f:3:18: storage.access_key_id: without its secret"),
            ("  url: s3://bucket\n  secret_access_key: a", "f:3:22: storage.secret_access_key: without its key"),
            ("  url: s3://bucket\n  session_token: a", "f:3:18: storage.session_token: without the key"),
            ("  url: s3://bucket\n  sse_kms_key_id: a", "f:3:19: storage.sse_kms_key_id: of use with `sse: aws:kms`"),
            (
                "  url: s3://bucket\n  sse: AES256\n  sse_kms_key_id: a",
                "f:4:19: storage.sse_kms_key_id: of use with `sse: aws:kms`",
            ),
            ("  url: s3://bucket\n  sse: aes", "f:3:8: storage.sse: unknown value `aes`"),
            ("  url: s3://bucket\n  region: eu central", "f:3:11: storage.region: no region"),
            ("  url: s3://bucket\n  path_style: perhaps", "f:3:15: storage.path_style: expected true or false"),
            ("  url: gs://bucket", "f:2:8: storage.url: `gs://bucket` is no storage: Google Cloud Storage"),
        ] {
            only_fault(storage, starts);
        }
    }

    #[test]
    fn the_secrets_of_a_bucket_are_in_no_fault_no_debug_output_and_no_json() {
        let text = "  url: s3://bucket\n  access_key_id: a\n  secret_access_key: canary-1\n  session_token: canary-2";
        let storage = parse(text).unwrap();
        let shown = format!("{storage:?}{}", serde_json::to_string(&storage).unwrap());
        assert!(!shown.contains("canary"), "{shown}");
        let text =
            "  url: s3://bucket\n  access_key_id: a\n  secret_access_key: \"can ary\"\n  session_token: \"can ary\"";
        let faults = parse(text).unwrap_err().concat();
        assert!(faults.contains("blanks") && !faults.contains("ary"), "{faults}");
    }
}
