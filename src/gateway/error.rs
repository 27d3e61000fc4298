//! Why the gateway does not start, or ends.

use std::io;
use std::net::SocketAddr;

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
    /// TLS for requests to plugins cannot be set up.
    #[error("requests over HTTP cannot be made: {0}")]
    HttpClient(reqwest::Error),
    /// A configured header is none. The value is not shown: it may be a secret.
    #[error("plugins: {plugin}: a header has a name or value that HTTP does not allow")]
    Header {
        /// The plugin's name.
        plugin: String,
    },
}
