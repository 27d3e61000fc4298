//! How a collector is spoken to over OTLP, the OpenTelemetry protocol: the same for spans and for metrics.
//!
//! By gRPC or HTTP, with the configured headers, which are kept out of debug output. By HTTP each signal has a path of
//! its own, which an endpoint with a path of its own replaces.
//!
//! Over TLS where the endpoint says `https`. The collector's certificate must come from an authority that the system
//! trusts (on Linux the certificates of the distribution, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name), or,
//! where a file of authorities is configured, from one of these and no other.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig, WithTonicConfig};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::Url;

use crate::config::Secret;

/// How long one batch may take to send.
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a collector cannot be spoken to at all.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The file of authorities cannot be read.
    #[error("ca_file: {path}: {error}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The file of authorities holds something else.
    #[error("ca_file: {path}: {reason}; it must hold certificates in PEM", path = path.display())]
    NotCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The exporter refuses its settings, or there is no authority to trust.
    #[error("{0}")]
    Exporter(#[from] ExporterBuildError),
    /// TLS cannot be set up.
    #[error("requests over HTTP cannot be made: {0}")]
    HttpClient(#[from] reqwest::Error),
}

/// A collector.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Its URL.
    pub(crate) endpoint: &'a Url,
    /// What is sent along.
    pub(crate) headers: &'a BTreeMap<String, Secret>,
    /// The authorities its certificate must come from; none: those the system trusts.
    pub(crate) ca_file: Option<&'a Path>,
}

/// An exporter that speaks gRPC.
///
/// # Errors
/// When the file of authorities is of no use.
pub(crate) fn by_grpc<B>(exporter: B, to: Target<'_>) -> Result<B, CollectorError>
where
    B: WithExportConfig + WithTonicConfig,
{
    let Target { endpoint, headers, ca_file } = to;
    let mut sent_along = HeaderMap::new();
    for (name, value) in headers {
        // Both were checked when the configuration was read.
        if let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), value.expose().parse::<HeaderValue>()) {
            value.set_sensitive(true);
            sent_along.append(name, value);
        }
    }
    let exporter = exporter
        .with_endpoint(endpoint.as_str())
        .with_timeout(SEND_TIMEOUT)
        .with_metadata(MetadataMap::from_headers(sent_along));
    if endpoint.scheme() != "https" {
        return Ok(exporter);
    }
    let tls = match ca_file {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    Ok(exporter.with_tls_config(tls))
}

/// An exporter that posts to `path`, the signal's own, where the endpoint has none.
///
/// # Errors
/// When the file of authorities is of no use, or TLS cannot be set up.
pub(crate) fn by_http<B>(exporter: B, path: &str, to: Target<'_>) -> Result<B, CollectorError>
where
    B: WithExportConfig + WithHttpConfig,
{
    let Target { endpoint, headers, ca_file } = to;
    let mut client = reqwest::Client::builder().timeout(SEND_TIMEOUT);
    if let Some(path) = ca_file {
        client = client.tls_certs_only(reqwest::Certificate::from_pem_bundle(&authorities(path)?)?);
    }
    let headers: HashMap<String, String> =
        headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    Ok(exporter
        .with_http_client(client.build()?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(posted_to(endpoint, path))
        .with_timeout(SEND_TIMEOUT)
        .with_headers(headers))
}

/// The certificates of authorities, in PEM, that a file holds: at least one, and none that TLS would pass over.
pub(crate) fn authorities(path: &Path) -> Result<Vec<u8>, CollectorError> {
    let pem = fs::read(path).map_err(|error| CollectorError::Unreadable { path: path.to_owned(), error })?;
    let refused = |reason: String| CollectorError::NotCertificates { path: path.to_owned(), reason };
    let mut trusted = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| refused(error.to_string()))?;
        trusted.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    if trusted.is_empty() { Err(refused("no certificate".to_owned())) } else { Ok(pem) }
}

fn posted_to(endpoint: &Url, path: &str) -> Url {
    let mut url = endpoint.clone();
    if matches!(url.path(), "" | "/") {
        url.set_path(path);
    }
    url
}

#[cfg(test)]
pub(crate) mod testing {
    //! A collector that keeps what it is sent.

    use axum::Router;
    use axum::body::to_bytes;
    use axum::extract::Request;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use url::Url;

    /// Takes whatever is posted, over gRPC too.
    pub(crate) struct Sink {
        url: Url,
        received: mpsc::UnboundedReceiver<(String, String, Vec<u8>)>,
    }

    impl Sink {
        pub(crate) async fn start() -> Self {
            let (sender, received) = mpsc::unbounded_channel();
            let keep = move |request: Request| {
                let sender = sender.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let authorization =
                        head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
                    let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
                    sender.send((head.uri.path().to_owned(), authorization.unwrap_or_default(), body)).unwrap();
                    ([("content-type", "application/grpc"), ("grpc-status", "0")], "")
                }
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
            let router: Router = Router::new().fallback(keep);
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
            Self { url, received }
        }

        pub(crate) fn url(&self) -> Url {
            self.url.clone()
        }

        /// Path, authorization and body of the next request that has arrived.
        pub(crate) fn received(&mut self) -> (String, String, Vec<u8>) {
            self.received.try_recv().unwrap()
        }
    }

    pub(crate) fn contains(body: &[u8], part: &[u8]) -> bool {
        body.windows(part.len()).any(|window| window == part)
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::posted_to;

    #[test]
    fn an_endpoint_without_a_path_gets_the_protocols_own() {
        let url = |text: &str| posted_to(&Url::parse(text).unwrap(), "/v1/traces").to_string();
        assert_eq!(url("http://c:4318"), "http://c:4318/v1/traces");
        assert_eq!(url("http://c:4318/v1/traces"), "http://c:4318/v1/traces");
        assert_eq!(url("https://c/tenant/traces"), "https://c/tenant/traces");
    }
}
