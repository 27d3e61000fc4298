//! The settings of the program's own logs and traces.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Endpoint, Secret};

/// The program's own logs and traces.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Logs, on standard error.
    pub log: Log,
    /// Traces.
    pub otlp: Otlp,
    /// Where the dashboard leads to from a call to its trace.
    pub trace_url: Option<TraceUrl>,
}

/// Where people see a trace: an `https://` or `http://` URL with `{trace_id}` in it, and `{span_id}` where the viewer
/// wants one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceUrl(String);

impl TraceUrl {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TraceUrl {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let filled = text.replace("{trace_id}", &"0".repeat(32)).replace("{span_id}", &"0".repeat(16));
        // A link of another scheme could run a script in the dashboard's own page.
        let is_page = url::Url::parse(&filled).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if is_page && text.contains("{trace_id}") && !filled.contains(['{', '}']) {
            Ok(Self(text))
        } else {
            Err(
                "an https:// or http:// URL with `{trace_id}` where the trace's id goes, and nothing else in braces but `{span_id}`",
            )
        }
    }
}

impl From<TraceUrl> for String {
    fn from(url: TraceUrl) -> Self {
        url.0
    }
}

/// Logs, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least severe lines that are written; the variable `MCPG_LOG` overrides it, also for single modules.
    pub level: LogLevel,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Human,
    /// A JSON object a line.
    Json,
}

/// How severe a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Something failed that should not.
    Error,
    /// Something to look at.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Traces over OTLP, the OpenTelemetry protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Otlp {
    /// The collector's URL; none: no traces.
    pub endpoint: Option<Endpoint>,
    /// Headers that are sent along, like `authorization`.
    pub headers: BTreeMap<String, Secret>,
    /// Which share of the traces that start here is kept, 0 to 1. A caller's decision on its own trace is followed.
    pub sample_rate: f64,
    /// How the collector is spoken to.
    pub protocol: OtlpProtocol,
    /// The authorities, in PEM, one of which the collector's certificate must come from; none: those the system trusts.
    pub ca_file: Option<PathBuf>,
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            headers: BTreeMap::new(),
            sample_rate: 1.0,
            protocol: OtlpProtocol::default(),
            ca_file: None,
        }
    }
}

/// How the collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtlpProtocol {
    /// gRPC, usually on port 4317.
    #[default]
    Grpc,
    /// HTTP with protobuf bodies, usually on port 4318, path `/v1/traces`.
    Http,
}

#[cfg(test)]
mod tests {
    use crate::config::ControlPlane;

    fn trace_url(url: &str) -> Result<Option<String>, String> {
        let text = format!("telemetry: {{ trace_url: '{url}' }}");
        match ControlPlane::parse("f", &text, &|_| None) {
            Ok(settings) => Ok(settings.telemetry.trace_url.map(String::from)),
            Err(faults) => Err(faults.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn a_link_to_a_trace_is_a_page_and_names_the_trace() {
        for good in ["https://t.example/trace/{trace_id}", "http://localhost:16686/trace/{trace_id}?span={span_id}#x"] {
            assert_eq!(trace_url(good), Ok(Some(good.to_owned())));
        }
        for bad in [
            "https://t.example/",
            "/trace/{trace_id}",
            "javascript:alert(1)//{trace_id}",
            "data:text/html,{trace_id}",
            "https://t.example/{trace_id}/{org}",
            "{trace_id}",
            "",
        ] {
            assert!(trace_url(bad).is_err_and(|fault| fault.contains("telemetry.trace_url")), "{bad}");
        }
    }
}
