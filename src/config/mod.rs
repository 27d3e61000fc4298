//! Configuration: a YAML file to typed settings, with every fault of the file reported at once.
//!
//! A file goes through four steps, and a fault in one does not hide the faults of the next:
//!
//! 1. YAML events become a tree in which every key and value knows its line and column. A duplicate key is a fault.
//! 2. `${NAME}` and `${NAME:-default}` are replaced in every scalar *after* parsing, so a variable's content can never
//!    add structure. `$${` is a literal `${`. A variable that is unset and has no default is a fault. A value of which
//!    nothing is left counts as not written, quoted or not. (YAML itself wants quotes around `${…}` inside `{ }` and
//!    `[ ]`.)
//! 3. The tree is deserialized into plain `serde` structs that refuse unknown keys. A value is read as the type that
//!    its setting has, so `name: 007` is the text `007`. A key without a value keeps its default. After a fault the
//!    offending node is taken out and reading starts again, until it succeeds: that finds all faults, not just the
//!    first.
//! 4. Rules that span several keys are checked on the result ([`ControlPlane`], [`Gateway`]).
//!
//! Anchors, aliases and tags are refused: a configuration is read by people, top to bottom.
//!
//! ```
//! let environment = |name: &str| (name == "PORT").then(|| "7000".to_owned());
//! let settings = mcpg::config::ControlPlane::parse("cp.yaml", "listen: 127.0.0.1:${PORT}", &environment)?;
//! assert_eq!(settings.listen.port(), 7000);
//! let faults = mcpg::config::ControlPlane::parse("cp.yaml", "lisen: 127.0.0.1:1", &environment).unwrap_err();
//! assert_eq!(faults.to_string(), "cp.yaml:1:1: lisen: unknown key; did you mean `listen`?");
//! # Ok::<(), mcpg::config::Faults>(())
//! ```

mod check;
mod decode;
mod endpoint;
mod expiry;
mod fault;
mod gateway;
mod gateway_check;
mod identity;
mod interpolate;
mod kind;
mod limits;
mod payload;
mod people;
mod people_check;
mod plugin;
mod policy;
mod quantity;
mod read;
#[cfg(test)]
mod reference;
mod secret;
mod settings;
mod storage;
mod streams;
mod summary;
mod telemetry;
mod tls;
mod token;
mod tree;

pub use endpoint::Endpoint;
pub use expiry::{Expiry, ExpiryError};
pub use fault::{Fault, Faults};
pub use gateway::{ControlPlaneLink, Gateway, GatewayLimits, GatewayTelemetry, Rate, RateBy, Spool, StateKey};
pub use identity::{CallerToken, Identity, Jwt, JwtAlgorithm, JwtKind};
pub use kind::Kind;
pub use limits::{Limits, SqlLimits};
pub use payload::{
    AwsKmsKey, CaptureSettings, OrgPayloads, PayloadKeys, PluginCapture, VaultAuth, VaultKey, whole_days,
};
pub use people::{Grant, Oidc, People, Session};
pub use plugin::{ListsOf, Plugin, PluginGeneration, PluginName, PluginNameError, Restart, Share, Transport};
pub use policy::PolicySource;
pub use quantity::{ByteSize, Period, QuantityError};
pub use secret::Secret;
pub use settings::{Audit, Commit, ControlPlane, Flush, LogSettings, Org, OrgScope, Retention, Token, Witness};
pub use storage::{ServerSideEncryption, Storage, StorageUrl, StorageUrlError};
pub use streams::{
    AuditStream, Destination, MetricsPush, MetricsStream, Observability, OnFailure, TraceStream, TrustCallers,
};
pub use summary::{OrgSummary, TokenSummary};
pub use telemetry::{Log, LogFormat, LogLevel, Otlp, OtlpProtocol, Telemetry, TraceUrl};
pub use tls::Tls;
pub use token::{TokenHash, TokenHashError};

/// Looks an environment variable up: the process's own environment outside of tests.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment. A variable that is not UTF-8 counts as unset.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
