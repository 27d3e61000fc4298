//! Log lines on standard error: for people on a terminal, a JSON object a line elsewhere.
//!
//! A JSON line has `timestamp`, `level`, `message`, the event's own fields beside them, and the request's span as
//! `span`. The program's own lines are written from the configured level on, those of the libraries in it from `warn`
//! on, and those of the MCP library never: it logs whole messages, with arguments, results and error texts (invariant
//! I6). What of it matters, the gateway says itself.
//!
//! Libraries that log by the `log` crate are heard through `Libraries`.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_log::{AsLog, LogTracer};
use tracing_subscriber::filter::{FilterExt, ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
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
    layer_on(log, filter, std::io::stderr)
}

fn layer_on<S, W>(log: &Log, filter: Option<&str>, to: W) -> Result<Box<dyn Layer<S> + Send + Sync>, ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A filter without a level hides that of the other: then every line of every library is asked about.
    let discreet = filter_fn(|line| !TALKATIVE.iter().any(|library| line.target().starts_with(library)))
        .with_max_level_hint(LevelFilter::TRACE);
    let filter = EnvFilter::try_new(directives(log.level, filter))?.and(discreet);
    // A closed standard error must not turn a log line into a panic.
    let lines = fmt::layer().with_writer(to).log_internal_errors(false);
    Ok(if is_human(log.format) {
        lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).with_filter(filter).boxed()
    } else {
        lines.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed()
    })
}

/// Hears the libraries that log by the `log` crate: what they say becomes events of `tracing`.
///
/// A library may ask whether it would be heard (`log_enabled!`) and then say nothing. The layers' filters keep their
/// answer for the event that is to follow, and would take the next span of the thread for it: its lines lost their
/// request. So the question is answered from the levels alone, without asking the filters.
#[derive(Debug, Default)]
struct Libraries(LogTracer);

impl log::Log for Libraries {
    fn enabled(&self, line: &log::Metadata<'_>) -> bool {
        line.level() <= LevelFilter::current().as_log()
    }

    fn log(&self, line: &log::Record<'_>) {
        self.0.log(line);
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Hears the libraries from now on, by the levels of the subscriber that is set up.
///
/// # Errors
/// When others hear them already.
pub(super) fn hear_libraries() -> Result<(), log::SetLoggerError> {
    log::set_boxed_logger(Box::new(Libraries::default()))?;
    log::set_max_level(LevelFilter::current().as_log());
    Ok(())
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
    use std::sync::Mutex;

    use log::Log as _;
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{EnvFilter, Layer, Registry};

    use super::{Libraries, directives, layer, layer_on};
    use crate::config::{Log, LogFormat, LogLevel};

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
    #[test]
    fn levels_that_nobody_reads_are_not_asked_about() {
        let hint = |level| layer::<Registry>(&Log { level, ..Log::default() }, None).unwrap().max_level_hint();
        assert_eq!((hint(LogLevel::Info), hint(LogLevel::Debug)), (Some(LevelFilter::INFO), Some(LevelFilter::DEBUG)));
    }

    #[test]
    fn a_library_that_asks_and_then_says_nothing_costs_no_line_its_request() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Log { level: LogLevel::Debug, format: LogFormat::Json };
        let lines = layer_on::<Registry, _>(&log, None, Mutex::new(file.reopen().unwrap())).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let debug = log::Metadata::builder().level(log::Level::Debug).target("datafusion_optimizer").build();
            Libraries::default().enabled(&debug);
            let request = tracing::error_span!("http", request_id = "find-me");
            request.in_scope(|| tracing::error!("it failed"));
        });
        let written = std::fs::read_to_string(file.path()).unwrap();
        assert!(written.contains("it failed") && written.contains("find-me"), "{written}");
    }
}
