//! TLS of a server: certificate, key and the authorities of client certificates, from files that are watched.
//!
//! The files are looked at every two seconds. When one of them is another, all are read again; what cannot be used (a
//! key that is not the certificate's, while only one of the two has been replaced) is logged, and what was there stays
//! in use. A connection keeps what it began with. With a `client_ca_file` a client must show a certificate of one of
//! its authorities, or the handshake fails.
//!
//! TLS 1.2 and 1.3, `h2` and `http/1.1` by ALPN; the ring provider, whatever else is linked in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::config;

/// How often the files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// What is spoken over it, the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why TLS cannot be had: which file, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {path}: {reason}")]
pub struct TlsError {
    key: &'static str,
    path: String,
    reason: String,
}

impl TlsError {
    fn new(key: &'static str, path: &Path, reason: impl fmt::Display) -> Self {
        Self { key, path: path.display().to_string(), reason: reason.to_string() }
    }
}

/// TLS of a server. Clones share what is in use.
#[derive(Clone)]
pub struct Tls {
    settings: config::Tls,
    current: Arc<RwLock<Arc<ServerConfig>>>,
    /// What the files were before they were read: what changes from then on is noticed.
    loaded: Vec<Stamp>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Tls {
    /// TLS by these files.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(settings: &config::Tls) -> Result<Self, TlsError> {
        let loaded = stamps(settings);
        let current = Arc::new(RwLock::new(Arc::new(read(settings)?)));
        Ok(Self { settings: settings.clone(), current, loaded })
    }

    /// What the next connection is accepted with.
    pub fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.current.read()).into()
    }

    /// Takes what is in the files whenever that changes. Never ends by itself.
    pub async fn watch(self) {
        let mut seen = self.loaded;
        loop {
            sleep(RELOAD_INTERVAL).await;
            let now = stamps(&self.settings);
            if now == seen {
                continue;
            }
            seen = now;
            match read(&self.settings) {
                Ok(config) => {
                    *self.current.write() = Arc::new(config);
                    tracing::info!("the TLS files were read again");
                }
                Err(error) => {
                    tracing::error!(%error, "the TLS files cannot be used; what was read before stays in use")
                }
            }
        }
    }
}

fn stamps(settings: &config::Tls) -> Vec<Stamp> {
    let config::Tls { cert_file, key_file, client_ca_file } = settings;
    [Some(cert_file), Some(key_file), client_ca_file.as_ref()].into_iter().flatten().map(stamp).collect()
}

/// What tells a file from what it was.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(file: &PathBuf) -> Stamp {
    let read = std::fs::metadata(file).ok()?;
    Some((read.modified().ok()?, read.len()))
}

fn read(settings: &config::Tls) -> Result<ServerConfig, TlsError> {
    let (cert, key) = (&settings.cert_file, &settings.key_file);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| TlsError::new("tls.cert_file", cert, e))?;
    let builder = match &settings.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let failed = |e: &dyn fmt::Display| TlsError::new("tls.client_ca_file", path, e);
            let mut roots = RootCertStore::empty();
            for authority in certificates("tls.client_ca_file", path)? {
                roots.add(authority).map_err(|e| failed(&e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| failed(&e))?)
        }
    };
    let chain = certificates("tls.cert_file", cert)?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|e| TlsError::new("tls.key_file", key, told(&e, "private key")))?;
    let config = builder.with_single_cert(chain, private);
    let mut config = config.map_err(|e| {
        let reason = match e {
            rustls::Error::InconsistentKeys(_) => format!("it is not the key of the certificate in {}", cert.display()),
            other => other.to_string(),
        };
        TlsError::new("tls.key_file", key, reason)
    })?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(config)
}

/// The certificates in a file, at least one.
fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |e: &PemError| TlsError::new(key, path, told(e, "certificate"));
    let found = CertificateDer::pem_file_iter(path).map_err(|e| failed(&e))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|e| failed(&e))?;
    if found.is_empty() { Err(failed(&PemError::NoItemsFound)) } else { Ok(found) }
}

/// What is wrong with a PEM file that was to hold something.
fn told(error: &PemError, what: &str) -> String {
    match error {
        PemError::NoItemsFound => format!("there is no {what} in it; it is to be PEM"),
        PemError::Io(e) => e.to_string(),
        other => format!("no PEM: {other:?}"),
    }
}
