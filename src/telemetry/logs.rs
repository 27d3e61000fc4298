//! Log lines on standard error: for people on a terminal, a JSON object a line elsewhere.
//!
//! A JSON line has `timestamp`, `level`, `message`, the event's own fields beside them, and the request's span as
//! `span`. The program's own lines are written from the configured level on, those of the libraries in it from `warn`
//! on, and those of the MCP library never: it logs whole messages, with arguments, results and error texts (invariant
//! I6). What of it matters, the gateway says itself.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::filter::{FilterExt, ParseError, filter_fn};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{Log, LogFormat, LogLevel};

/// The environment variable that overrides the configured level: `debug`, or `info,mcpg::plane=debug`.
pub const VARIABLE: &str = "MCPG_LOG";

/// The libraries whose lines hold payloads.
const TALKATIVE: [&str; 1] = ["rmcp"];

/// Whether lines are written for people under this setting.
pub fn is_human(format: LogFormat) -> bool {
    match format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    }
}

/// The layer that writes; `filter` is the content of [`VARIABLE`].
///
/// # Errors
/// When `filter` is not a filter.
pub(super) fn layer<S>(log: &Log, filter: Option<&str>) -> Result<Box<dyn Layer<S> + Send + Sync>, ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let discreet = filter_fn(|line| !TALKATIVE.iter().any(|library| line.target().starts_with(library)));
    let filter = EnvFilter::try_new(directives(log.level, filter))?.and(discreet);
    // A closed standard error must not turn a log line into a panic.
    let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    Ok(if is_human(log.format) {
        lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).with_filter(filter).boxed()
    } else {
        lines.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed()
    })
}

fn directives(level: LogLevel, variable: Option<&str>) -> String {
    match variable {
        // A bare level is for the program's own lines, as in the configuration.
        Some(text) if !text.trim().is_empty() && !text.contains(['=', ',']) => format!("warn,mcpg={}", text.trim()),
        Some(text) if !text.trim().is_empty() => text.to_owned(),
        _ if level == LogLevel::Error => "error".to_owned(),
        _ => format!("warn,mcpg={}", level.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{EnvFilter, Registry};

    use super::{directives, layer};
    use crate::config::{Log, LogLevel};

    #[test]
    fn libraries_are_quiet_below_warnings() {
        assert_eq!(directives(LogLevel::Debug, None), "warn,mcpg=debug");
        assert_eq!(directives(LogLevel::Error, Some("")), "error");
    }

    #[test]
    fn the_variable_overrides_the_level() {
        assert_eq!(directives(LogLevel::Info, Some("trace")), "warn,mcpg=trace");
        assert_eq!(directives(LogLevel::Info, Some("info,hyper=debug")), "info,hyper=debug");
        assert!(EnvFilter::try_new(directives(LogLevel::Info, Some("trace"))).is_ok());
    }

    #[test]
    fn a_variable_that_is_no_filter_is_refused() {
        assert!(layer::<Registry>(&Log::default(), Some("mcpg=loud=er")).is_err());
        assert!(layer::<Registry>(&Log::default(), Some("debug")).is_ok());
    }
}
