//! What can go wrong below the plane: three kinds, by what the reader can do about it.

/// Why storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The URL or the folder cannot be used: the operator must change the configuration.
    #[error("storage {url}: {reason}")]
    Unusable {
        /// The configured URL.
        url: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The store refused or failed an operation; it may succeed later.
    #[error("storage: {action} {object}: {source}")]
    Failed {
        /// What was being done.
        action: &'static str,
        /// To which object.
        object: String,
        /// What the store said.
        source: Box<dyn std::error::Error + Send + Sync>,
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
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { action, object: object.to_string(), source: source.into() }
    }

    /// A damaged `object`.
    pub fn damaged(object: impl ToString, reason: impl ToString) -> Self {
        Self::Damaged { object: object.to_string(), reason: reason.to_string() }
    }

    /// Whether the stored bytes themselves are wrong.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}
