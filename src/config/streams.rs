//! The settings of the gateway's three streams: each on unless it is switched off, each sent elsewhere by itself.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::settings::address;
use super::{Endpoint, Otlp, OtlpProtocol, Period, Secret};

/// The gateway's three streams.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Observability {
    /// Metrics: a sample of each call to the control plane, and the gateway's own metrics.
    pub metrics: MetricsStream,
    /// Traces over OTLP.
    pub otlp: TraceStream,
    /// The audit ledger's events.
    pub audit: AuditStream,
}

/// Metrics: a sample of each call to the control plane, and the gateway's own metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsStream {
    /// Whether samples are sent and metrics are served.
    pub enabled: bool,
    /// Where the gateway's own `/metrics` are served.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Another control plane for the samples; none: the gateway's own.
    pub control_plane: Option<Destination>,
    /// A collector that the gateway's own metrics are pushed to as well.
    pub push: Option<MetricsPush>,
}

impl Default for MetricsStream {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)), control_plane: None, push: None }
    }
}

/// A collector that the gateway's own metrics are pushed to, over OTLP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsPush {
    /// The collector's URL.
    pub endpoint: Endpoint,
    /// Headers that are sent along, like `authorization`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// How the collector is spoken to.
    #[serde(default)]
    pub protocol: OtlpProtocol,
    /// The authorities, in PEM, one of which the collector's certificate must come from; none: those the system trusts.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// How often they are pushed.
    #[serde(default = "default_push_interval")]
    pub interval: Period,
}

const fn default_push_interval() -> Period {
    Period::new(Duration::from_secs(30))
}

/// Traces over OTLP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceStream {
    /// Whether spans are exported, once there is an endpoint.
    pub enabled: bool,
    /// The collector's URL; none: no spans are exported.
    pub endpoint: Option<Endpoint>,
    /// Headers that are sent along, like `authorization`.
    pub headers: BTreeMap<String, Secret>,
    /// Which share of the traces that start here is kept, 0 to 1. Of callers' traces see `trust_callers`.
    pub sample_rate: f64,
    /// Whose decision on its own trace is followed.
    pub trust_callers: TrustCallers,
    /// How the collector is spoken to.
    pub protocol: OtlpProtocol,
    /// The authorities, in PEM, one of which the collector's certificate must come from; none: those the system trusts.
    pub ca_file: Option<PathBuf>,
}

/// Whose decision, whether its own trace is kept, is followed. A caller's trace is joined in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustCallers {
    /// Every caller's.
    All,
    /// That of callers with a token; for all others the gateway's own rate decides.
    #[default]
    Known,
    /// Nobody's.
    None,
}

impl Default for TraceStream {
    fn default() -> Self {
        let Otlp { endpoint, headers, sample_rate, protocol, ca_file } = Otlp::default();
        let trust_callers = TrustCallers::default();
        Self { enabled: true, endpoint, headers, sample_rate, trust_callers, protocol, ca_file }
    }
}

impl TraceStream {
    /// The export's settings; without an endpoint when the stream is off.
    pub fn otlp(&self) -> Otlp {
        Otlp {
            endpoint: self.endpoint.clone().filter(|_| self.enabled),
            headers: self.headers.clone(),
            sample_rate: self.sample_rate,
            protocol: self.protocol,
            ca_file: self.ca_file.clone(),
        }
    }
}

/// The audit ledger's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditStream {
    /// Whether events are recorded at all.
    pub enabled: bool,
    /// What becomes of a call whose decision cannot be recorded durably.
    pub on_failure: OnFailure,
    /// A file that events are appended to, a JSON object a line, instead of a control plane.
    pub file: Option<PathBuf>,
    /// Another control plane for the events; none: the gateway's own.
    pub control_plane: Option<Destination>,
}

impl Default for AuditStream {
    fn default() -> Self {
        Self { enabled: true, on_failure: OnFailure::Open, file: None, control_plane: None }
    }
}

/// What becomes of a call whose decision cannot be recorded durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It goes on, and the event that was lost is counted.
    #[default]
    Open,
    /// It is refused: no durable record, no call.
    Closed,
}

/// A control plane that one stream is sent to instead of the gateway's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// Its URL.
    pub url: Endpoint,
    /// The token it knows the gateway by, with the role `ingest`.
    #[serde(default)]
    pub token: Option<Secret>,
}
