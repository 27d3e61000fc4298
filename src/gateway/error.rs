//! Why the gateway does not start, or ends.

use std::io;
use std::net::SocketAddr;

use super::call::seal::KeyError;
use super::export::EmitError;
use super::identity::IdentityError;
use crate::config::Faults;
use crate::telemetry::CollectorError;
use crate::tls::TlsError;

/// Why the gateway does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// The files of TLS cannot be used.
    #[error("TLS cannot be had: {0}")]
    Tls(#[from] TlsError),
    /// The policies have faults.
    #[error("the policies have faults\n{0}")]
    Policy(Faults),
    /// Callers cannot be identified.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Samples and audit events cannot be kept.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// The keys of the states that clients carry cannot be used.
    #[error(transparent)]
    StateKeys(#[from] KeyError),
    /// Payloads cannot be captured.
    #[error("payloads cannot be captured: {0}")]
    Capture(io::Error),
    /// Spans cannot be exported.
    #[error("observability.otlp: {0}")]
    Traces(CollectorError),
    /// Metrics cannot be pushed.
    #[error("observability.metrics.push: {0}")]
    Push(CollectorError),
    /// TLS for requests to plugins cannot be set up.
    #[error("requests over HTTP cannot be made: {0}")]
    HttpClient(reqwest::Error),
    /// A configured header has a name or value that HTTP does not allow. The value is not shown: it may be a secret.
    #[error("plugins: {plugin}: a header has a name or value that HTTP does not allow")]
    Header {
        /// The plugin's name.
        plugin: String,
    },
}
