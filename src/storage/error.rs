//! What can go wrong below the plane: three kinds, by what the reader can do about it.
//!
//! The line between the second and the third is what keeps a store's hiccup from stopping an org: *damage* is bytes
//! that arrived whole and are wrong; whatever the store or the system failed to deliver (EIO, ESTALE, a timeout, 403,
//! 5xx) is a *failure*, which may pass. Libraries wrap the one in the other's clothes: a failed read comes out of a
//! Parquet or Delta reader as an error of that reader. [`StorageError::read`] looks beneath.

use std::error::Error;
use std::io;
use std::sync::Arc;

/// Why storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The URL, the folder or the service cannot be used: the operator must change the configuration.
    #[error("storage {url}: {reason}")]
    Unusable {
        /// The configured URL.
        url: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The store refused or failed an operation; it may succeed later.
    #[error("storage: {action} {object}: {}", in_full(&**.source))]
    Failed {
        /// What was being done.
        action: &'static str,
        /// To which object.
        object: String,
        /// What the store said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// What is stored is not what was written (invariant I2): never skipped, an operator must look.
    #[error("{object} is damaged: {reason}; restore it from a backup, nothing was changed")]
    Damaged {
        /// Which object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl StorageError {
    /// A failed operation on `object`.
    pub fn failed(
        action: &'static str,
        object: impl ToString,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { action, object: object.to_string(), source: source.into() }
    }

    /// A damaged `object`.
    pub fn damaged(object: impl ToString, reason: impl ToString) -> Self {
        Self::Damaged { object: object.to_string(), reason: reason.to_string() }
    }

    /// What an error of a library that reads and parses at once says of `object`: a failure where [`is_hiccup`] finds
    /// the store or the system beneath it, and damage otherwise.
    pub fn read(object: impl ToString, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error = error.into();
        if is_hiccup(&*error) { Self::failed("read", object, error) } else { Self::damaged(object, in_full(&*error)) }
    }

    /// Whether the stored bytes themselves are wrong.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

/// Whether the store or the system failed, somewhere beneath an error that a library made of it: what was asked for did
/// not arrive, and says nothing about what is stored. That an object is absent is no hiccup, and no damage by itself
/// either.
///
/// It walks `source()`, as far as the libraries keep it. Some do not (delta-kernel gives an object store's error no
/// source): who calls such a one must watch the store beneath it, as [`super::table`] does.
pub fn is_hiccup(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = downcast::<object_store::Error>(error) {
            match error {
                // Each may still wrap what is no failure of the store: `source()` tells.
                object_store::Error::NotFound { .. } => return false,
                object_store::Error::InvalidPath { .. } => {}
                _ => return true,
            }
        }
        if let Some(error) = downcast::<io::Error>(error) {
            if is_refusal_of_the_system(error) {
                return true;
            }
            // `source()` of an error that wraps another passes over the one it wraps.
            next = error.get_ref().map(|inner| inner as &(dyn Error + 'static));
            continue;
        }
        next = error.source();
    }
    false
}

/// The error as a `T`, also behind the pointers that libraries share errors by.
fn downcast<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let boxed = || error.downcast_ref::<Box<T>>().map(|boxed| &**boxed);
    let shared = || error.downcast_ref::<Arc<T>>().map(|shared| &**shared);
    error.downcast_ref::<T>().or_else(boxed).or_else(shared)
}

/// Whether the operating system or the network failed. What readers make up themselves about the bytes that they were
/// given (an unexpected end, invalid data) does not count.
fn is_refusal_of_the_system(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, Other, UnexpectedEof, Unsupported};
    match error.kind() {
        NotFound | UnexpectedEof | InvalidData | InvalidInput | Unsupported => false,
        Other => error.raw_os_error().is_some(),
        _ => true,
    }
}

/// An error with what it was caused by, where its own text does not say that already.
fn in_full(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io;
    use std::sync::Arc;

    use arrow::error::ArrowError;
    use datafusion::error::DataFusionError;
    use deltalake_core::DeltaTableError;
    use object_store::Error as StoreError;
    use parquet::errors::ParquetError;

    use super::{StorageError, is_hiccup};

    fn generic(source: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
        StoreError::Generic { store: "S3", source: source.into() }
    }

    fn os(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    const EIO: i32 = 5;
    const EACCES: i32 = 13;
    const ESTALE: i32 = 116;
    const ETIMEDOUT: i32 = 110;
    const ENOENT: i32 = 2;

    #[test]
    fn a_failure_of_the_store_or_the_system_is_a_hiccup_whatever_wraps_it() {
        let denied = || StoreError::PermissionDenied { path: "x".to_owned(), source: "403".into() };
        let hiccups: Vec<Box<dyn Error + Send + Sync>> = vec![
            Box::new(os(EIO)),
            Box::new(os(ESTALE)),
            Box::new(os(ETIMEDOUT)),
            Box::new(os(EACCES)),
            Box::new(io::Error::other(os(EIO))),
            Box::new(io::Error::other(generic("503"))),
            Box::new(io::Error::new(io::ErrorKind::UnexpectedEof, os(EIO))),
            Box::new(generic("503")),
            Box::new(denied()),
            Box::new(DeltaTableError::ObjectStore { source: generic(os(EIO)) }),
            Box::new(DeltaTableError::Io { source: os(ESTALE) }),
            Box::new(DeltaTableError::GenericError { source: Box::new(denied()) }),
            Box::new(DeltaTableError::Parquet { source: ParquetError::External(Box::new(generic("timeout"))) }),
            Box::new(DeltaTableError::Arrow { source: ArrowError::ExternalError(Box::new(generic("timeout"))) }),
            Box::new(ArrowError::IoError("read".to_owned(), os(EIO))),
            Box::new(ArrowError::from_external_error(Box::new(ParquetError::External(Box::new(os(EIO)))))),
            Box::new(DataFusionError::ObjectStore(Box::new(generic("503")))),
            Box::new(DataFusionError::ObjectStore(Box::new(generic("503"))).context("scan")),
            Box::new(DataFusionError::Shared(Arc::new(DataFusionError::External(Box::new(os(EIO)))))),
            Box::new(DataFusionError::ArrowError(Box::new(ArrowError::IoError("x".to_owned(), os(EIO))), None)),
            Box::new(DataFusionError::ParquetError(Box::new(ParquetError::External(Box::new(generic("reset")))))),
            Box::new(ParquetError::External(Box::new(Arc::new(os(EIO))))),
        ];
        for error in hiccups {
            let text = format!("{error:?}");
            assert!(is_hiccup(&*error), "{text}");
            assert!(!StorageError::read("x", error).is_damage(), "{text}");
        }
    }

    #[test]
    fn what_a_reader_says_of_whole_bytes_is_damage_and_an_absent_object_is_no_hiccup() {
        let json = serde_json::from_str::<u8>("{").unwrap_err();
        let absent = StoreError::NotFound { path: "x".to_owned(), source: os(ENOENT).into() };
        let findings: Vec<Box<dyn Error + Send + Sync>> = vec![
            Box::new(json),
            Box::new(ParquetError::EOF("footer".to_owned())),
            Box::new(ArrowError::ParseError("x".to_owned())),
            Box::new(ArrowError::IoError("short".to_owned(), io::ErrorKind::UnexpectedEof.into())),
            Box::new(DeltaTableError::MetadataError("none".to_owned())),
            Box::new(io::Error::new(io::ErrorKind::InvalidData, "no UTF-8")),
            Box::new(io::Error::other("a reader's own words")),
            Box::new(os(ENOENT)),
            Box::new(absent),
        ];
        for error in findings {
            let text = format!("{error:?}");
            assert!(!is_hiccup(&*error), "{text}");
            assert!(StorageError::read("x", error).is_damage(), "{text}");
        }
    }

    #[test]
    fn a_failure_keeps_its_source_and_says_it_once() {
        let error = StorageError::failed("read", "wal/1", generic(os(EIO)));
        let message = error.to_string();
        assert!(
            message.starts_with("storage: read wal/1: ") && message.matches("os error 5").count() == 1,
            "{message}"
        );
        assert!(error.source().is_some_and(|source| source.downcast_ref::<StoreError>().is_some()));
    }
}
