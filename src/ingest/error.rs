//! Why a request body was not taken, each kind with its HTTP status and a stable code.
//!
//! No message here ever repeats a value of a sample: a value may be, or may hold by mistake, the text of an error
//! message (invariant I6). Only names of fields are repeated, unknown ones shortened and only if they look like names.

use std::borrow::Cow;

use http::StatusCode;
use serde::Serialize;

/// At most so many faults of one body are listed; reading stops there.
pub const MAX_LISTED_ERRORS: usize = 100;
/// The most characters of an unknown field's name that a message repeats.
const MAX_SHOWN_CHARS: usize = 64;

/// Said of a field that is not ours.
pub(super) const NO_SUCH_FIELD: &str = "no such field";
/// Said of an `org` that is not the path's.
pub(super) const ORG_DIFFERS: &str = "is not the org of the request's path";
/// Said of an `error_message` that comes with the hash of another text.
pub(super) const HASH_DIFFERS: &str = "does not hash to the error_hash beside it; send one of the two";

/// One fault of one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SampleError {
    /// Which row: its index in the batch, from 0. In NDJSON blank lines do not count.
    pub row: usize,
    /// Which field; none when the row as a whole could not be read.
    pub field: Option<Cow<'static, str>>,
    /// What is wrong, and what would be right.
    pub message: Cow<'static, str>,
}

/// What the rows of a body are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowKind {
    /// Samples of tool calls.
    #[default]
    Sample,
    /// Events for the ledger.
    Event,
}

impl RowKind {
    /// What several of them are called.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Sample => "samples",
            Self::Event => "events",
        }
    }
}

/// Why a body was not taken. Nothing of it was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// 413: the body, as decompressed, or its number of samples is over a limit.
    #[error("{0}")]
    TooLarge(String),
    /// 415: a `Content-Type` that is not supported.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// 415: a `Content-Encoding` that is not supported.
    #[error("{0}")]
    UnsupportedEncoding(String),
    /// 400: the body does not decompress.
    #[error("{0}")]
    BadEncoding(String),
    /// 400: the body is not what its `Content-Type` says.
    #[error("{detail}")]
    Malformed {
        /// What is wrong, and where.
        detail: String,
        /// Faults of samples found up to there, the one that ended the reading included where its row is known.
        errors: Vec<SampleError>,
    },
    /// 400: no row in the body.
    #[error("the body holds no {}; send at least one", .0.plural())]
    EmptyBatch(RowKind),
    /// 400: rows that break a rule.
    #[error("invalid {}, see errors; nothing of the batch was stored", kind.plural())]
    Invalid {
        /// What the rows are.
        kind: RowKind,
        /// The faults by row, at most [`MAX_LISTED_ERRORS`].
        errors: Vec<SampleError>,
        /// Whether there were, or may have been, more than are listed.
        truncated: bool,
    },
    /// 500: a fault of the program itself.
    #[error("internal error: {0}")]
    Internal(String),
}

impl IngestError {
    /// The word that stands for this kind in `code` of the answer; it never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "body_too_large",
            Self::UnsupportedMediaType(_) => "unsupported_media_type",
            Self::UnsupportedEncoding(_) => "unsupported_encoding",
            Self::BadEncoding(_) => "bad_encoding",
            Self::Malformed { .. } => "malformed_body",
            Self::EmptyBatch(_) => "empty_batch",
            Self::Invalid { kind: RowKind::Sample, .. } => "invalid_sample",
            Self::Invalid { kind: RowKind::Event, .. } => "invalid_event",
            Self::Internal(_) => "internal",
        }
    }

    /// The HTTP status of the answer.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType(_) | Self::UnsupportedEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BadEncoding(_) | Self::Malformed { .. } | Self::EmptyBatch(_) | Self::Invalid { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The faults by row, for `errors` of the answer; empty for kinds that know no rows.
    pub fn errors(&self) -> &[SampleError] {
        match self {
            Self::Malformed { errors, .. } | Self::Invalid { errors, .. } => errors,
            _ => &[],
        }
    }

    /// A body of too many rows.
    pub(super) fn too_many_rows(kind: RowKind, max_rows: usize) -> Self {
        Self::TooLarge(format!("the body holds over {max_rows} {}; send smaller batches", kind.plural()))
    }

    /// A body that is not what its `Content-Type` says, without a row to point at.
    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed { detail: detail.into(), errors: Vec::new() }
    }
}

/// A name that we do not know, as a message may show it: cut to 64 characters, and only if it looks like a name at all,
/// since in a broken body any text may stand where a name should.
pub(super) fn shown(name: &str) -> String {
    if !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.')) {
        return "(not shown)".to_owned();
    }
    let mut shown = name.chars().take(MAX_SHOWN_CHARS).collect::<String>();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
}

/// Collects the faults of one body, up to [`MAX_LISTED_ERRORS`].
#[derive(Debug, Default)]
pub(super) struct Faults {
    errors: Vec<SampleError>,
    truncated: bool,
}

impl Faults {
    /// Notes a fault of a field.
    pub(super) fn field(
        &mut self,
        row: usize,
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) {
        self.add(SampleError { row, field: Some(field.into()), message: message.into() });
    }

    /// Notes a fault of a sample as a whole.
    pub(super) fn sample(&mut self, row: usize, message: impl Into<Cow<'static, str>>) {
        self.add(SampleError { row, field: None, message: message.into() });
    }

    /// Notes that a required field is missing or null.
    pub(super) fn missing(&mut self, row: usize, field: &'static str) {
        self.field(row, field, "required, but missing or null");
    }

    fn add(&mut self, error: SampleError) {
        if self.is_full() {
            self.truncated = true;
        } else {
            self.errors.push(error);
        }
    }

    /// Whether no more faults will be listed, so that reading on is of no use.
    pub(super) fn is_full(&self) -> bool {
        self.errors.len() >= MAX_LISTED_ERRORS
    }

    /// Whether there was none.
    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The faults in the order of rows.
    pub(super) fn into_sorted(mut self) -> Vec<SampleError> {
        self.errors.sort_by_key(|error| error.row);
        self.errors
    }

    /// The error that lists them.
    pub(super) fn into_error(self, kind: RowKind) -> IngestError {
        let truncated = self.truncated || self.is_full();
        IngestError::Invalid { kind, errors: self.into_sorted(), truncated }
    }
}

#[cfg(test)]
mod tests {
    use super::{Faults, IngestError, MAX_LISTED_ERRORS, RowKind};

    #[test]
    fn faults_are_listed_by_row_and_no_more_than_the_limit() {
        let mut faults = Faults::default();
        for row in (0..MAX_LISTED_ERRORS + 7).rev() {
            faults.missing(row, "tool");
        }
        let IngestError::Invalid { errors, truncated, .. } = faults.into_error(RowKind::Sample) else { panic!() };
        assert_eq!(errors.len(), MAX_LISTED_ERRORS);
        assert!(errors.is_sorted_by_key(|error| error.row));
        assert!(truncated);
    }
}
