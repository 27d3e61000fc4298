//! Opening a bucket of S3, or of a service that speaks its protocol.
//!
//! **Two clients** over one pool of connections. Conditional writes (create if absent, compare and swap) go through one
//! that never retries: a retry that meets its own first attempt is answered "exists", and the winner would take itself
//! for the loser. Everything else is idempotent, and is retried with backoff for a bounded time. [`super::transport`]
//! sees to it that the second one does not retry a conditional write either: Delta's commits are such, and go through
//! it.
//!
//! | | a request | in all |
//! |---|---|---|
//! | conditional writes | 10 s; 60 s with a body above 8 MiB | one request |
//! | the rest | the same | 45 s; with a body above 8 MiB the last request may go on for its 60 s |
//!
//! **Where settings come from.** What the configuration says goes before the environment (`AWS_…`). Credentials are
//! never mixed: either the configuration has key and secret, and then a session token of the environment is not used;
//! or they come from the environment's static key, a web identity token (EKS IRSA), the ECS task role, EKS pod identity
//! or the EC2 instance (IMDSv2), in this order. Profiles and single sign-on are not read.
//!
//! Bodies are signed, and carry their SHA-256 as the checksum that the service verifies and keeps, which buckets with
//! Object Lock ask for.

use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{
    AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider, Checksum, S3ConditionalPut,
};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider};
use url::Url;

use super::transport::{Requests, SMALL_TIMEOUT, Transport};
use crate::config::{ServerSideEncryption, Storage};
use crate::telemetry::collector::authorities;

/// After this no further attempt begins. With the longest pause and one request more it is 45 s.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// More than fit into the time.
const MAX_RETRIES: usize = 100;
/// How long credentials are looked for before a request fails for the lack of them.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);
const CREDENTIALS_RETRIES: usize = 3;

/// An opened bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Retries with backoff for a bounded time.
    pub(super) objects: Arc<dyn ObjectStore>,
    /// Never retries.
    pub(super) conditional: Arc<dyn ObjectStore>,
    /// The requests of both.
    pub(super) requests: Arc<Requests>,
}

/// Opens what is under `prefix` of a bucket. Nothing is requested yet.
///
/// # Errors
/// What cannot be used, and what to do.
pub(super) fn open(storage: &Storage, bucket: &str, prefix: &str) -> Result<Bucket, String> {
    let environment = AmazonS3Builder::from_env();
    let place = Place::of(storage, bucket, &environment)?;
    let pem = storage.ca_file.as_deref().map(roots).transpose()?;
    let transport = Transport::new(pem.as_deref(), place.allow_http).map_err(|e| e.to_string())?;
    let requests = transport.requests();
    let credentials = credentials(storage, bucket)?;
    let client = |retry: RetryConfig| {
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_credentials(Arc::clone(&credentials))
            .with_virtual_hosted_style_request(place.virtual_hosted)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_checksum_algorithm(Checksum::SHA256)
            .with_unsigned_payload(false)
            .with_client_options(ClientOptions::new().with_allow_http(place.allow_http))
            .with_http_connector(transport.clone())
            .with_retry(retry);
        if let Some(region) = &storage.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &place.endpoint {
            // This key goes before every variable of the environment.
            builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        }
        let sse = storage.sse.map(ServerSideEncryption::as_str);
        for (name, value) in
            [("aws_server_side_encryption", sse), ("aws_sse_kms_key_id", storage.sse_kms_key_id.as_deref())]
        {
            if let Some(value) = value {
                builder = builder.with_config(name.parse::<AmazonS3ConfigKey>().map_err(|e| e.to_string())?, value);
            }
        }
        builder.build().map(|client| under(prefix, client)).map_err(|e| e.to_string())
    };
    let backoff = BackoffConfig { max_backoff: MAX_BACKOFF, ..BackoffConfig::default() };
    let bounded = RetryConfig { backoff, max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT };
    let never = RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
    Ok(Bucket { objects: client(bounded)?, conditional: client(never)?, requests })
}

fn under(prefix: &str, client: impl ObjectStore) -> Arc<dyn ObjectStore> {
    match prefix {
        "" => Arc::new(client),
        prefix => Arc::new(PrefixStore::new(client, Path::from(prefix))),
    }
}

pub(super) fn roots(path: &FsPath) -> Result<Vec<u8>, String> {
    authorities(path).map_err(|e| e.to_string())
}

/// Where the bucket is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The URL that keys are appended to, with the bucket's name in its host where `virtual_hosted`; none: AWS's own.
    pub(super) endpoint: Option<String>,
    pub(super) virtual_hosted: bool,
    allow_http: bool,
}

impl Place {
    pub(super) fn of(storage: &Storage, bucket: &str, environment: &AmazonS3Builder) -> Result<Self, String> {
        let variable = |key| environment.get_config_value(&key).filter(|value| !value.is_empty());
        let endpoint = match &storage.endpoint {
            Some(endpoint) => Some(Url::clone(endpoint)),
            None => {
                let text = variable(AmazonS3ConfigKey::S3Endpoint).or_else(|| variable(AmazonS3ConfigKey::Endpoint));
                let parsed = text.map(|text| Url::parse(&text)).transpose();
                parsed.map_err(|e| format!("AWS_ENDPOINT_URL is no URL: {e}"))?
            }
        };
        let allowed = || variable(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)).is_some_and(|v| v == "true");
        let allow_http = storage.allow_http.unwrap_or_else(allowed);
        if !allow_http && endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme() == "http") {
            return Err(
                "its endpoint is http://, which anyone on the way can read; make it https://, or set allow_http: \
                        true (AWS_ALLOW_HTTP=true)"
                    .to_owned(),
            );
        }
        let asked = || std::env::var_os("AWS_VIRTUAL_HOSTED_STYLE_REQUEST").map(|value| value == "true");
        let path_style = storage.path_style.or_else(|| asked().map(|virtual_hosted| !virtual_hosted));
        // A certificate for all buckets matches one level below the host, and a dot makes two.
        let path_style = path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
        let endpoint = match endpoint {
            Some(endpoint) if !path_style => Some(in_host(endpoint, bucket)?),
            endpoint => endpoint,
        };
        let endpoint = endpoint.map(|endpoint| String::from(endpoint).trim_end_matches('/').to_owned());
        Ok(Self { endpoint, virtual_hosted: !path_style, allow_http })
    }
}

/// The endpoint with the bucket in its host.
fn in_host(mut endpoint: Url, bucket: &str) -> Result<Url, String> {
    let host = match endpoint.domain() {
        Some(domain) => format!("{bucket}.{domain}"),
        None => {
            return Err(
                "its endpoint is an IP address, which a bucket's name cannot be put before; set path_style: true"
                    .to_owned(),
            );
        }
    };
    endpoint.set_host(Some(&host)).map_err(|e| format!("{host} is no host: {e}"))?;
    Ok(endpoint)
}

/// Who signs.
pub(super) fn credentials(storage: &Storage, bucket: &str) -> Result<AwsCredentialProvider, String> {
    if let (Some(id), Some(secret)) = (&storage.access_key_id, &storage.secret_access_key) {
        let token = storage.session_token.as_ref().map(|token| token.expose().to_owned());
        let credential = AwsCredential { key_id: id.clone(), secret_key: secret.expose().to_owned(), token };
        return Ok(Arc::new(StaticCredentialProvider::new(credential)));
    }
    // Which of the environment's ways it is, is decided where a client is built. The authorities of `ca_file` are the
    // bucket's alone: tokens come from elsewhere.
    let retry =
        RetryConfig { max_retries: CREDENTIALS_RETRIES, retry_timeout: CREDENTIALS_TIMEOUT, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(ClientOptions::new().with_timeout(SMALL_TIMEOUT))
        .with_retry(retry);
    if let Some(region) = &storage.region {
        builder = builder.with_region(region);
    }
    let client = builder.build().map_err(|e| format!("no credentials: {e}"))?;
    Ok(Arc::clone(client.credentials()))
}

#[cfg(test)]
mod tests {
    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
    use url::Url;

    use super::{Place, open};
    use crate::config::{Secret, ServerSideEncryption, Storage};

    fn at(endpoint: &str) -> Storage {
        Storage { endpoint: Some(Url::parse(endpoint).unwrap().into()), ..Storage::default() }
    }

    fn place(storage: &Storage, bucket: &str) -> Result<Place, String> {
        Place::of(storage, bucket, &AmazonS3Builder::new())
    }

    fn endpoint(storage: &Storage, bucket: &str) -> (Option<String>, bool) {
        let place = place(storage, bucket).unwrap();
        (place.endpoint, place.virtual_hosted)
    }

    #[test]
    fn the_bucket_is_in_the_path_of_an_endpoint_and_in_the_host_of_aws() {
        assert_eq!(endpoint(&Storage::default(), "bucket"), (None, true));
        assert_eq!(endpoint(&Storage::default(), "my.bucket"), (None, false));
        assert_eq!(
            endpoint(&at("https://s3.example:9000/"), "bucket"),
            (Some("https://s3.example:9000".into()), false)
        );
        let in_host = Storage { path_style: Some(false), ..at("https://s3.example:9000") };
        assert_eq!(endpoint(&in_host, "bucket"), (Some("https://bucket.s3.example:9000".into()), true));
        let in_path = Storage { path_style: Some(true), ..Storage::default() };
        assert_eq!(endpoint(&in_path, "bucket"), (None, false));
        let address = Storage { path_style: Some(false), ..at("https://10.0.0.1") };
        assert!(place(&address, "bucket").unwrap_err().contains("path_style: true"));
    }

    #[test]
    fn an_unencrypted_endpoint_of_the_environment_must_be_allowed_too() {
        let environment = AmazonS3Builder::new().with_config(AmazonS3ConfigKey::Endpoint, "http://h:1");
        let refused = Place::of(&Storage::default(), "bucket", &environment).unwrap_err();
        assert!(refused.contains("AWS_ALLOW_HTTP"), "{refused}");
        let storage = Storage { allow_http: Some(true), ..Storage::default() };
        let place = Place::of(&storage, "bucket", &environment).unwrap();
        assert_eq!(place.endpoint.as_deref(), Some("http://h:1"));
    }

    #[test]
    fn what_the_configuration_says_goes_before_the_environment() {
        let environment = AmazonS3Builder::new().with_config(AmazonS3ConfigKey::S3Endpoint, "https://elsewhere");
        let place = Place::of(&at("https://here"), "bucket", &environment).unwrap();
        assert_eq!(place.endpoint.as_deref(), Some("https://here"));
    }

    #[test]
    fn a_bucket_opens_without_a_request_and_shows_no_secret() {
        let storage = Storage {
            access_key_id: Some("id".to_owned()),
            secret_access_key: Some(Secret::new("canary-1")),
            session_token: Some(Secret::new("canary-2")),
            sse: Some(ServerSideEncryption::Kms),
            ..Storage::default()
        };
        let bucket = open(&storage, "bucket", "a/b").unwrap();
        assert!(!format!("{bucket:?}").contains("canary"));
    }

    #[test]
    fn a_file_of_authorities_that_holds_none_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let storage = Storage { ca_file: Some(file.path().to_owned()), ..at("https://h") };
        let refused = open(&storage, "bucket", "").unwrap_err();
        assert!(refused.starts_with("ca_file: ") && refused.contains("no certificate"), "{refused}");
    }
}
