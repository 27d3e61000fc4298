//! The HTTP client by which the control plane is spoken to: the authorities it must be certified by, and the
//! certificate that the gateway shows it.
//!
//! Without `ca_file` those authorities count that the system trusts; with it these and no other. The files are looked
//! at every two seconds while something is sent. When one of them is another, all are read again, for new connections;
//! what cannot be used (a key that is not the certificate's, while only one of the two has been replaced) is logged,
//! and what was there stays in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use reqwest::{Certificate, Client, ClientBuilder, Identity};
use tokio::time::Instant;

use crate::config::ControlPlaneLink;
use crate::telemetry::collector::{CollectorError, authorities};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why the control plane cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// The file of authorities is of no use.
    #[error("control_plane.{0}")]
    Authorities(#[from] CollectorError),
    /// A file of the gateway's own certificate cannot be read.
    #[error("control_plane.{key}: {path}: {error}", path = path.display())]
    Unreadable {
        /// Which setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is not a certificate or a key, or the two do not belong together.
    #[error("control_plane.cert_file: {path}: {error}", path = path.display())]
    Identity {
        /// The certificate.
        path: PathBuf,
        /// Why not.
        error: reqwest::Error,
    },
    /// There is no HTTP client to be had.
    #[error("no HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// What tells the files from what they were.
type Stamps = Vec<Option<(SystemTime, u64)>>;

/// The files of TLS, as they are configured.
#[derive(Debug, Clone, Default)]
struct Files {
    authorities: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug)]
struct Current {
    client: Client,
    stamps: Stamps,
    looked_at: Instant,
}

/// See the module's doc. Cheap to clone: clones share what is in use.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    files: Files,
    timeout: Duration,
    connect_timeout: Duration,
    current: Arc<Mutex<Current>>,
}

impl HttpClient {
    /// A client of the configured control plane. An attempt takes `timeout` at most.
    ///
    /// # Errors
    /// See [`ControlPlaneError`].
    pub(crate) fn new(
        link: &ControlPlaneLink,
        timeout: Duration,
        connect_timeout: Duration,
    ) -> Result<Self, ControlPlaneError> {
        let files =
            Files { authorities: link.ca_file.clone(), certificate: link.cert_file.clone().zip(link.key_file.clone()) };
        Self::with(files, timeout, connect_timeout)
    }

    /// A client of another server than the gateway's own control plane: by the authorities that the system trusts.
    ///
    /// # Errors
    /// See [`ControlPlaneError`].
    pub(crate) fn of_another(timeout: Duration, connect_timeout: Duration) -> Result<Self, ControlPlaneError> {
        Self::with(Files::default(), timeout, connect_timeout)
    }

    fn with(files: Files, timeout: Duration, connect_timeout: Duration) -> Result<Self, ControlPlaneError> {
        // Before the files are read: what changes in between is seen at the next look.
        let stamps = files.stamps();
        let client = files.client(timeout, connect_timeout)?;
        let current = Arc::new(Mutex::new(Current { client, stamps, looked_at: Instant::now() }));
        Ok(Self { files, timeout, connect_timeout, current })
    }

    /// The client for the next request.
    pub(crate) fn get(&self) -> Client {
        let mut current = self.current.lock();
        if self.files.is_any() && current.looked_at.elapsed() >= LOOK {
            current.looked_at = Instant::now();
            let stamps = self.files.stamps();
            if stamps != current.stamps {
                current.stamps = stamps;
                match self.files.client(self.timeout, self.connect_timeout) {
                    Ok(client) => {
                        current.client = client;
                        tracing::info!("the TLS files of the control plane were read again");
                    }
                    Err(error) => {
                        tracing::error!(%error, "the TLS files cannot be used; what was read before stays in use");
                    }
                }
            }
        }
        current.client.clone()
    }
}

impl Files {
    fn is_any(&self) -> bool {
        self.authorities.is_some() || self.certificate.is_some()
    }

    fn stamps(&self) -> Stamps {
        let own = self.certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.authorities.iter().chain(own).map(|path| stamp(path)).collect()
    }

    fn client(&self, timeout: Duration, connect_timeout: Duration) -> Result<Client, ControlPlaneError> {
        let builder = Client::builder()
            .timeout(timeout)
            .connect_timeout(connect_timeout)
            // A redirect could lead the token elsewhere.
            .redirect(reqwest::redirect::Policy::none());
        Ok(self.shown(self.trusting(builder)?)?.build()?)
    }

    fn trusting(&self, builder: ClientBuilder) -> Result<ClientBuilder, ControlPlaneError> {
        let Some(path) = &self.authorities else { return Ok(builder) };
        Ok(builder.tls_certs_only(Certificate::from_pem_bundle(&authorities(path)?)?))
    }

    /// With the gateway's own certificate.
    fn shown(&self, builder: ClientBuilder) -> Result<ClientBuilder, ControlPlaneError> {
        let Some((certificate, key)) = &self.certificate else { return Ok(builder) };
        let mut pem = read("cert_file", certificate)?;
        pem.push(b'\n');
        pem.extend(read("key_file", key)?);
        let identity = Identity::from_pem(&pem);
        let identity = identity.map_err(|error| ControlPlaneError::Identity { path: certificate.clone(), error })?;
        Ok(builder.identity(identity))
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, ControlPlaneError> {
    fs::read(path).map_err(|error| ControlPlaneError::Unreadable { key, path: path.to_owned(), error })
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let read = fs::metadata(path).ok()?;
    Some((read.modified().ok()?, read.len()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::HttpClient;
    use crate::config::ControlPlaneLink;

    #[test]
    fn a_file_that_is_of_no_use_is_named_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let (empty, absent) = (folder.path().join("empty.pem"), folder.path().join("absent.pem"));
        std::fs::write(&empty, "").unwrap();
        let fault = |link: ControlPlaneLink| {
            let second = Duration::from_secs(1);
            HttpClient::new(&link, second, second).unwrap_err().to_string()
        };
        let trusting =
            |path: &std::path::Path| ControlPlaneLink { ca_file: Some(path.to_owned()), ..Default::default() };
        assert!(fault(trusting(&absent)).starts_with("control_plane.ca_file: "));
        assert!(fault(trusting(&empty)).contains("no certificate"));
        let showing = |certificate: &std::path::Path| ControlPlaneLink {
            cert_file: Some(certificate.to_owned()),
            key_file: Some(empty.clone()),
            ..Default::default()
        };
        assert!(fault(showing(&absent)).starts_with("control_plane.cert_file: "));
        assert!(fault(showing(&empty)).starts_with("control_plane.cert_file: "));
    }
}
