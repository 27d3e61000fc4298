//! The versions of a bucket's objects: whether there are any, and deleting each, so that what is deleted is gone.
//!
//! `object_store` speaks of the newest version alone. These are the few requests of S3's that it lacks:
//! `GetBucketVersioning`, `GetObjectLockConfiguration`, `ListObjectVersions`, `DeleteObject` of one version.

use std::fmt;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::path::Path;
use reqwest::{Client, Method, StatusCode};
use url::Url;

use super::s3::{Place, credentials};
use super::{StorageError, s3};
use crate::config::{Storage, StorageUrl};
use crate::model::causes;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Access to the versions of a bucket's objects.
pub struct Versions {
    client: Client,
    credentials: AwsCredentialProvider,
    region: String,
    /// The bucket's URL, without a slash at its end.
    bucket: String,
    /// What every key begins with.
    prefix: String,
}

impl fmt::Debug for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Versions").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// One version of an object, or a marker that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    key: String,
    id: String,
}

impl Versions {
    /// Of the bucket that the settings name; none of a folder or of memory, which have no versions.
    ///
    /// # Errors
    /// [`StorageError::Unusable`] when the settings are of no use.
    pub fn open(storage: &Storage) -> Result<Option<Self>, StorageError> {
        let StorageUrl::S3 { bucket, prefix } = &storage.url else { return Ok(None) };
        let unusable = |reason: String| StorageError::Unusable { url: storage.url.to_string(), reason };
        let environment = AmazonS3Builder::from_env();
        let place = Place::of(storage, bucket, &environment).map_err(unusable)?;
        let region = storage.region.clone().or_else(|| environment.get_config_value(&AmazonS3ConfigKey::Region));
        let region = region.filter(|region| !region.is_empty()).unwrap_or_else(|| "us-east-1".to_owned());
        let bucket_url = match (&place.endpoint, place.virtual_hosted) {
            (Some(endpoint), true) => endpoint.clone(),
            (Some(endpoint), false) => format!("{endpoint}/{bucket}"),
            (None, true) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
            (None, false) => format!("https://s3.{region}.amazonaws.com/{bucket}"),
        };
        let mut client = Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
        if let Some(file) = &storage.ca_file {
            let pem = s3::roots(file).map_err(unusable)?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| unusable(e.to_string()))?;
            client = client.tls_certs_only(roots);
        }
        Ok(Some(Self {
            client: client.build().map_err(|e| unusable(e.to_string()))?,
            credentials: credentials(storage, bucket).map_err(unusable)?,
            region,
            bucket: bucket_url,
            prefix: prefix.clone(),
        }))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<(StatusCode, String), StorageError> {
        let failed = |e: &dyn fmt::Display| StorageError::failed("ask for versions in", &self.bucket, e.to_string());
        let mut url = Url::parse(&format!("{}/{path}", self.bucket)).map_err(|e| failed(&e))?;
        for (name, value) in query {
            url.query_pairs_mut().append_pair(name, value);
        }
        let credential = self.credentials.get_credential().await.map_err(|e| failed(&e))?;
        let mut request = HttpRequest::new(HttpRequestBody::from(Vec::new()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = url.as_str().parse().map_err(|e| failed(&e))?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);
        let sent = self.client.request(method, url).headers(request.headers().clone()).send().await;
        let answer = sent.map_err(|e| failed(&causes(&e.without_url())))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|e| failed(&causes(&e.without_url())))?;
        Ok((status, text))
    }

    /// Whether the bucket keeps, or has kept, versions.
    ///
    /// # Errors
    /// What the store says.
    pub async fn are_kept(&self) -> Result<bool, StorageError> {
        let (status, text) = self.send(Method::GET, "", &[("versioning", "")]).await?;
        match status {
            StatusCode::OK => Ok(first(&text, "Status").is_some()),
            // A service that has no versions does not know of them.
            StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused("GetBucketVersioning", status, &text)),
        }
    }

    /// Whether objects can be locked, so that they cannot be deleted for a time.
    ///
    /// # Errors
    /// What the store says.
    pub async fn can_lock(&self) -> Result<bool, StorageError> {
        let (status, text) = self.send(Method::GET, "", &[("object-lock", "")]).await?;
        match status {
            StatusCode::OK => Ok(first(&text, "ObjectLockEnabled").is_some_and(|enabled| enabled == "Enabled")),
            StatusCode::NOT_IMPLEMENTED
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_FOUND
            | StatusCode::BAD_REQUEST => Ok(false),
            _ => Err(self.refused("GetObjectLockConfiguration", status, &text)),
        }
    }

    /// Deletes every version of an object, and every marker. Says how many there were.
    ///
    /// # Errors
    /// What the store says.
    pub async fn delete_all(&self, path: &Path) -> Result<usize, StorageError> {
        let versions = self.of(path).await?;
        for version in &versions {
            let (status, text) = self.send(Method::DELETE, &version.key, &[("versionId", &version.id)]).await?;
            if !status.is_success() && status != StatusCode::NOT_FOUND {
                return Err(self.refused("DeleteObject", status, &text));
            }
        }
        Ok(versions.len())
    }

    /// How many versions and markers an object has.
    ///
    /// # Errors
    /// What the store says.
    pub async fn count(&self, path: &Path) -> Result<usize, StorageError> {
        self.of(path).await.map(|versions| versions.len())
    }

    async fn of(&self, path: &Path) -> Result<Vec<Version>, StorageError> {
        let key = if self.prefix.is_empty() { path.to_string() } else { format!("{}/{path}", self.prefix) };
        let (mut found, mut after) = (Vec::new(), None::<(String, String)>);
        loop {
            let mut query = vec![("versions", ""), ("prefix", key.as_str())];
            if let Some((key, version)) = &after {
                query.extend([("key-marker", key.as_str()), ("version-id-marker", version.as_str())]);
            }
            let (status, text) = self.send(Method::GET, "", &query).await?;
            if status != StatusCode::OK {
                return Err(self.refused("ListObjectVersions", status, &text));
            }
            found.extend(versions(&text).into_iter().filter(|version| version.key == key));
            let marker = || Some((first(&text, "NextKeyMarker")?, first(&text, "NextVersionIdMarker")?));
            after = marker().filter(|_| first(&text, "IsTruncated").is_some_and(|is| is == "true"));
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    fn refused(&self, what: &str, status: StatusCode, text: &str) -> StorageError {
        let code = first(text, "Code").unwrap_or_default();
        StorageError::failed("ask for versions in", &self.bucket, format!("{what}: {status} {code}"))
    }
}

/// The text of the first element of a name. Our keys and S3's ids have no character that XML escapes.
fn first(text: &str, element: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{element}>"))?;
    rest.split_once('<').map(|(value, _)| value.to_owned())
}

/// The versions and markers of an answer.
fn versions(text: &str) -> Vec<Version> {
    let mut found = Vec::new();
    for element in ["Version", "DeleteMarker"] {
        let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
        let inner = text.split(&begin).skip(1).filter_map(|part| part.split_once(&end).map(|(inner, _)| inner));
        found.extend(
            inner.filter_map(|inner| Some(Version { key: first(inner, "Key")?, id: first(inner, "VersionId")? })),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Version, first, versions};

    #[test]
    fn versions_and_markers_are_read() {
        let text = "<ListVersionsResult><IsTruncated>false</IsTruncated><Version><Key>a/b</Key><VersionId>1</VersionId></Version>\
                    <Version><Key>a/b</Key><VersionId>null</VersionId></Version>\
                    <DeleteMarker><Key>a/b</Key><VersionId>3</VersionId></DeleteMarker></ListVersionsResult>";
        let of = |id: &str| Version { key: "a/b".to_owned(), id: id.to_owned() };
        assert_eq!(versions(text), [of("1"), of("null"), of("3")]);
        assert_eq!(first(text, "IsTruncated").as_deref(), Some("false"));
        assert_eq!(first(text, "Status"), None);
    }
}
