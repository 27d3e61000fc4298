//! The settings of TLS, the same of both programs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// TLS of a server. The files are watched: what is in them is taken within seconds, and no connection is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and those that lead to its authority, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// The authorities of client certificates, PEM; with it every client must show one.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
}
