//! The program's own telemetry: its metrics, logs and traces.
//!
//! | module | holds |
//! |---|---|
//! | [`metrics`] | the control plane's own metrics, served at `/metrics` |
//! | [`logs`] | lines on standard error, for people on a terminal and as JSON elsewhere |
//! | [`traces`] | the control plane's spans, one per request |
//! | [`otlp`] | sending spans to a collector: bounded, counted |
//! | `collector` | how a collector is spoken to |
//! | [`w3c`] | trace context and baggage of callers, in HTTP headers and in MCP messages |
//!
//! None of the three ever holds the plaintext of an error message, a payload, a query, or a token (invariant I6).
//! Telling never fails or slows the work: log lines that cannot be written are dropped, spans are sent by a thread of
//! its own and dropped when its queue is full.

pub(crate) mod collector;
pub mod logs;
pub mod metrics;
pub mod otlp;
mod process;
pub mod traces;
pub mod w3c;

pub use collector::CollectorError;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use crate::config;

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The variable `MCPG_LOG` is no filter.
    #[error("MCPG_LOG: {0}; write a level like debug, or levels of modules like info,mcpg::plane=debug")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter refuses its settings.
    #[error("telemetry.otlp: {0}")]
    Otlp(#[from] CollectorError),
    /// Logging was set up before in this process.
    #[error("logging is set up already: {0}")]
    Again(#[from] tracing::subscriber::SetGlobalDefaultError),
    /// Another hears the libraries in this process.
    #[error("the libraries' log is taken already: {0}")]
    Taken(#[from] log::SetLoggerError),
}

/// The program's logs and traces while they run.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<traces::Traces>,
}

impl Telemetry {
    /// Sets up logs and, where configured, traces, for the whole process. Within a Tokio runtime.
    ///
    /// # Errors
    /// See [`TelemetryError`].
    pub fn start(settings: &config::Telemetry) -> Result<Self, TelemetryError> {
        let logs = logs::layer::<Registry>(&settings.log, std::env::var(logs::VARIABLE).ok().as_deref())?;
        let traces = traces::Traces::start(&settings.otlp)?;
        let layers = tracing_subscriber::registry().with(logs).with(traces.as_ref().map(traces::Traces::layer));
        tracing::subscriber::set_global_default(layers)?;
        logs::hear_libraries()?;
        Ok(Self { traces })
    }

    /// Sends the spans that still wait, for a few seconds at most.
    pub async fn shutdown(self) {
        if let Some(traces) = self.traces {
            traces.shutdown().await;
        }
    }
}
