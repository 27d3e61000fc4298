//! What can go wrong with a query, as its sender should read it.
//!
//! Each kind has a stable code and an HTTP status. A message names what is wrong, where, and what to do; it never holds
//! a path of the machine or an address, nor anything of another org. A damaged file of the org is reported with its
//! name in the store; other errors of the store are logged here and reported in general words.

use std::sync::Arc;
use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;

use crate::storage::StorageError;

/// A place in the query's text, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The character in the line.
    pub column: u64,
}

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QueryError {
    /// The text is no query, names what is not there, or failed on the data (a cast, a division by zero).
    #[error("{message}{}", at(.position))]
    Invalid {
        /// What is wrong.
        message: String,
        /// Where, if known.
        position: Option<Position>,
    },
    /// A statement, function or construct that is not offered.
    #[error("{message}{}", at(.position))]
    NotAllowed {
        /// What is not offered, and what is.
        message: String,
        /// Where, if known.
        position: Option<Position>,
    },
    /// A parameter is missing, superfluous, or of a type that has no SQL literal.
    #[error("{0}")]
    InvalidParameter(String),
    /// Text, nesting or number of terms past the limit, refused before it is planned.
    #[error("{0}")]
    TooLarge(String),
    /// It ran longer than allowed.
    #[error("the query was stopped after {} s; narrow its time range, aggregate more, or read the rollup tables", limit.as_secs_f64())]
    Timeout {
        /// The time allowed.
        limit: Duration,
    },
    /// It would read more files or bytes than allowed, refused before it began.
    #[error("{0}")]
    TooBroad(String),
    /// Its answer was not read to its end in time.
    #[error("the answer was not read to its end within {} s; read faster, or select less", limit.as_secs_f64())]
    Unread {
        /// The time allowed.
        limit: Duration,
    },
    /// Its reader is slow, and so are too many others of its org.
    #[error(
        "the answer was read too slowly while other answers of this org wait for their readers; read faster, or select less"
    )]
    SlowReader,
    /// It needed more memory or spill space than allowed.
    #[error("{0}")]
    Memory(String),
    /// Its answer has more rows than allowed.
    #[error(
        "the answer has more than {limit} rows; aggregate, filter, or page with LIMIT and a condition on started_at"
    )]
    TooManyRows {
        /// The rows allowed.
        limit: usize,
    },
    /// As many queries run as may.
    #[error("{limit} queries are running, and none ended in time; try again in {} s", retry_after.as_secs())]
    Busy {
        /// The queries that may run at once.
        limit: usize,
        /// When to come again.
        retry_after: Duration,
    },
    /// No offered format is acceptable to the client.
    #[error(
        "no acceptable format in {accept:?}; offered: application/json, application/x-ndjson, text/csv, \
         application/vnd.apache.arrow.stream, application/vnd.apache.parquet"
    )]
    NotAcceptable {
        /// The `Accept` header.
        accept: String,
    },
    /// The store did not give what the query needed.
    #[error("a table file could not be read; the server's log says more")]
    Storage,
    /// A file is not what was written.
    #[error("{object} is damaged: {reason}; restore it from a backup")]
    Damaged {
        /// The object's name in the store.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A fault of the program itself.
    #[error("internal error; see the server log")]
    Internal,
}

fn at(position: &Option<Position>) -> String {
    position.map_or_else(String::new, |p| format!(" (line {}, column {})", p.line, p.column))
}

impl QueryError {
    /// The stable code of the kind, as in a problem document.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid_query",
            Self::NotAllowed { .. } => "sql_not_allowed",
            Self::InvalidParameter(_) => "invalid_parameter",
            Self::TooLarge(_) => "query_too_large",
            Self::Timeout { .. } => "query_timeout",
            Self::TooBroad(_) => "scan_too_large",
            Self::Unread { .. } => "answer_timeout",
            Self::SlowReader => "slow_reader",
            Self::Memory(_) => "query_memory",
            Self::TooManyRows { .. } => "too_many_rows",
            Self::Busy { .. } => "too_many_queries",
            Self::NotAcceptable { .. } => "not_acceptable",
            Self::Storage => "storage_unavailable",
            Self::Damaged { .. } => "storage_damaged",
            Self::Internal => "internal_error",
        }
    }

    /// The HTTP status of the kind.
    ///
    /// Time, memory and row limits are 422: the request is well-formed, and would fail again as it stands.
    pub fn status(&self) -> u16 {
        match self {
            Self::Invalid { .. } | Self::NotAllowed { .. } | Self::InvalidParameter(_) => 400,
            Self::TooLarge(_) => 413,
            Self::Timeout { .. }
            | Self::TooBroad(_)
            | Self::Unread { .. }
            | Self::SlowReader
            | Self::Memory(_)
            | Self::TooManyRows { .. } => 422,
            Self::Busy { .. } => 429,
            Self::NotAcceptable { .. } => 406,
            Self::Storage | Self::Damaged { .. } => 503,
            Self::Internal => 500,
        }
    }

    /// After which time the same request may fare better.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => Some(*retry_after),
            Self::Storage => Some(Duration::from_secs(5)),
            _ => None,
        }
    }

    /// Where in the text the fault lies, if known.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Invalid { position, .. } | Self::NotAllowed { position, .. } => *position,
            _ => None,
        }
    }

    /// What the store says of a table's file.
    pub(super) fn from_storage(error: &StorageError) -> Self {
        tracing::error!(%error, "a query could not read its files");
        match error {
            StorageError::Damaged { object, reason } => {
                Self::Damaged { object: object.clone(), reason: reason.clone() }
            }
            StorageError::Failed { .. } | StorageError::Unusable { .. } => Self::Storage,
        }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), position: None }
    }

    pub(super) fn not_allowed(message: impl Into<String>) -> Self {
        Self::NotAllowed { message: message.into(), position: None }
    }

    pub(super) fn out_of_memory() -> Self {
        Self::Memory(
            "the query needs more memory than it may have; filter more, select fewer columns, or group by fewer".into(),
        )
    }

    /// A parser's complaint; its place is the tail of its message.
    pub(super) fn from_parser(error: &ParserError) -> Self {
        match error {
            ParserError::RecursionLimitExceeded => Self::TooLarge("the query is nested too deeply".into()),
            ParserError::TokenizerError(text) | ParserError::ParserError(text) => {
                let (message, position) = split_position(text);
                Self::Invalid { message: message.to_owned(), position }
            }
        }
    }

    /// What DataFusion reports, in the sender's terms; what concerns only the operator goes to the log.
    pub(super) fn from_datafusion(error: &DataFusionError) -> Self {
        Self::from_datafusion_at(error, false)
    }

    fn from_datafusion_at(error: &DataFusionError, planning: bool) -> Self {
        match error {
            DataFusionError::Context(_, inner) => Self::from_datafusion_at(inner, planning),
            DataFusionError::Shared(inner) => Self::from_datafusion_at(inner, planning),
            DataFusionError::Collection(errors) => {
                errors.first().map_or(Self::Internal, |error| Self::from_datafusion_at(error, planning))
            }
            DataFusionError::Diagnostic(diagnostic, inner) => {
                let position = diagnostic
                    .span
                    .map(|span| Position { line: span.start.line, column: span.start.column })
                    .filter(|position| position.line > 0);
                match Self::from_datafusion_at(inner, planning) {
                    Self::Invalid { message, position: None } => Self::Invalid { message, position },
                    other => other,
                }
            }
            DataFusionError::SQL(parser, _) => Self::from_parser(parser),
            DataFusionError::SchemaError(schema, _) => Self::from_schema(schema),
            DataFusionError::Plan(message)
            | DataFusionError::NotImplemented(message)
            | DataFusionError::Execution(message)
            | DataFusionError::Configuration(message) => Self::invalid(tidy(message)),
            DataFusionError::ArrowError(arrow, _) => Self::from_arrow(arrow),
            DataFusionError::ResourcesExhausted(message) => Self::from_exhaustion(message),
            DataFusionError::External(source) => Self::from_external(source.as_ref()),
            // Files are read through the object store: plain I/O is spilling.
            DataFusionError::IoError(_) => {
                tracing::warn!(%error, "a query could not spill");
                Self::out_of_memory()
            }
            DataFusionError::ObjectStore(_) | DataFusionError::ParquetError(_) => {
                tracing::error!(%error, "a query could not read its files");
                Self::Storage
            }
            DataFusionError::Internal(message) if planning => {
                tracing::warn!(%error, "a query could not be planned");
                Self::invalid(format!("the query cannot be planned: {}", message.lines().next().unwrap_or_default()))
            }
            _ => {
                tracing::error!(%error, "a query met an internal error");
                Self::Internal
            }
        }
    }

    /// What DataFusion reports of planning. At that point it has seen the statement and the tables' columns, and
    /// nothing else: what it calls an internal error is a statement that it cannot plan.
    pub(super) fn from_planning(error: &DataFusionError) -> Self {
        match Self::from_datafusion_at(error, true) {
            Self::Internal => Self::invalid("the query cannot be planned; write it another way"),
            other => other,
        }
    }

    fn from_schema(error: &SchemaError) -> Self {
        Self::invalid(error.to_string())
    }

    fn from_exhaustion(message: &str) -> Self {
        tracing::debug!(message, "a query ran out of memory or spill space");
        if message.contains("disk") || message.contains("temp") {
            return Self::Memory(
                "the query needs more spill space than it may have; filter more or group by fewer".into(),
            );
        }
        Self::out_of_memory()
    }

    fn from_external(source: &(dyn std::error::Error + Send + Sync + 'static)) -> Self {
        if let Some(own) = source.downcast_ref::<Self>() {
            return own.clone();
        }
        if let Some(inner) = source.downcast_ref::<DataFusionError>() {
            return Self::from_datafusion(inner);
        }
        if let Some(inner) = source.downcast_ref::<Arc<DataFusionError>>() {
            return Self::from_datafusion(inner);
        }
        if let Some(inner) = source.downcast_ref::<ArrowError>() {
            return Self::from_arrow(inner);
        }
        tracing::error!(error = %source, "internal error outside the query engine");
        Self::Internal
    }

    pub(super) fn from_arrow(error: &ArrowError) -> Self {
        match error {
            ArrowError::ExternalError(source) => Self::from_external(source.as_ref()),
            ArrowError::CastError(_)
            | ArrowError::ParseError(_)
            | ArrowError::ComputeError(_)
            | ArrowError::DivideByZero
            | ArrowError::ArithmeticOverflow(_)
            | ArrowError::InvalidArgumentError(_)
            | ArrowError::NotYetImplemented(_) => Self::invalid(error.to_string()),
            ArrowError::MemoryError(_) | ArrowError::OffsetOverflowError(_) => Self::out_of_memory(),
            ArrowError::IoError(..) => {
                tracing::warn!(%error, "a query could not spill");
                Self::out_of_memory()
            }
            ArrowError::ParquetError(_) => {
                tracing::error!(%error, "a query could not read its files");
                Self::Storage
            }
            _ => {
                tracing::error!(%error, "a query met an internal fault");
                Self::Internal
            }
        }
    }
}

/// Splits "what at Line: 1, Column: 8" into what and where.
fn split_position(text: &str) -> (&str, Option<Position>) {
    let parse = || {
        let (message, place) = text.rsplit_once(" at Line: ")?;
        let (line, column) = place.split_once(", Column: ")?;
        let position = Position { line: line.trim().parse().ok()?, column: column.trim().parse().ok()? };
        Some((message, position))
    };
    parse().map_or((text, None), |(message, position)| (message, Some(position)))
}

/// The message without the engine's habit of prefixing its own kinds.
fn tidy(message: &str) -> &str {
    message.trim_start_matches("Error during planning: ").trim_start_matches("Execution error: ")
}

#[cfg(test)]
mod tests {
    use datafusion::common::DataFusionError;
    use datafusion::sql::sqlparser::parser::ParserError;

    use super::{Position, QueryError};

    #[test]
    fn a_parser_fault_tells_its_place_apart_from_its_message() {
        let error = QueryError::from_parser(&ParserError::ParserError(
            "Expected: FROM, found: x at Line: 2, Column: 17".into(),
        ));
        assert_eq!(error.position(), Some(Position { line: 2, column: 17 }));
        assert_eq!(error.to_string(), "Expected: FROM, found: x (line 2, column 17)");
    }

    #[test]
    fn a_store_fault_does_not_tell_its_path() {
        let inner = object_store::Error::NotFound { path: "orgs/secret/file".into(), source: "gone".into() };
        let error = QueryError::from_datafusion(&DataFusionError::ObjectStore(Box::new(inner)));
        assert_eq!(error, QueryError::Storage);
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn an_error_of_our_own_survives_its_way_through_the_engine() {
        let own = QueryError::TooManyRows { limit: 7 };
        let wrapped = DataFusionError::Context(
            "while scanning".into(),
            Box::new(DataFusionError::External(Box::new(own.clone()))),
        );
        assert_eq!(QueryError::from_datafusion(&wrapped), own);
    }
}
