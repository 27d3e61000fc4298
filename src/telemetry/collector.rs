//! How a collector is spoken to over OTLP, the OpenTelemetry protocol: the same for spans and for metrics.
//!
//! By gRPC or HTTP, with the configured headers, which are kept out of debug output; over TLS where the endpoint says
//! `https`. By HTTP each signal has a path of its own, which an endpoint with a path of its own replaces.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig, WithTonicConfig};
use url::Url;

use crate::config::Secret;

/// How long one batch may take to send.
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// An exporter that speaks gRPC.
pub(crate) fn by_grpc<B>(exporter: B, endpoint: &Url, headers: &BTreeMap<String, Secret>) -> B
where
    B: WithExportConfig + WithTonicConfig,
{
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
    match endpoint.scheme() {
        "https" => exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots()),
        _ => exporter,
    }
}

/// An exporter that posts to `path`, the signal's own, where the endpoint has none.
pub(crate) fn by_http<B>(exporter: B, endpoint: &Url, path: &str, headers: &BTreeMap<String, Secret>) -> B
where
    B: WithExportConfig + WithHttpConfig,
{
    let headers: HashMap<String, String> =
        headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    exporter
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(posted_to(endpoint, path))
        .with_timeout(SEND_TIMEOUT)
        .with_headers(headers)
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
