//! What wraps keys: a KEK, in versions.

use std::fmt;

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::model::OrgName;
use crate::payload::Epoch;

/// Why a KEK did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KekError {
    /// It is away, or refuses for now: later it may be otherwise.
    #[error("the key service is not available: {0}")]
    Unavailable(String),
    /// What is wrapped was wrapped by something that is not there any more, or was changed.
    #[error("the key cannot be unwrapped: {0}")]
    Refused(String),
    /// The configuration is of no use.
    #[error("{0}")]
    Unusable(String),
}

/// What was wrapped, and by which version of what.
#[derive(Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// As it stands in a wrapped key: `file:3`.
    pub kek: String,
    /// What the KEK made of it.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped").field("kek", &self.kek).finish_non_exhaustive()
    }
}

/// A rotation that has begun: from now on the new version wraps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// What wraps now.
    pub now: String,
    /// How what wrapped before is destroyed.
    pub before: Before,
}

/// How what wrapped before a rotation is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// All older versions at once: [`Kek::destroy_older`].
    Older,
    /// Each by its name: [`Kek::destroy`].
    Named,
    /// By the operator, who set it.
    Operator,
}

/// A KEK, in versions. What is wrapped says itself whose it is; `org` and `epoch` are for those KEKs that bind them
/// too.
#[async_trait]
pub trait Kek: fmt::Debug + Send + Sync {
    /// What kind it is, as its versions begin: `file`, `vault`, `aws_kms`.
    fn kind(&self) -> &'static str;

    /// The version that wraps now.
    ///
    /// # Errors
    /// See [`KekError`].
    async fn current(&self) -> Result<String, KekError>;

    /// Wraps by the current version.
    ///
    /// # Errors
    /// See [`KekError`].
    async fn wrap(&self, org: &OrgName, epoch: Epoch, plain: &[u8]) -> Result<Wrapped, KekError>;

    /// Unwraps.
    ///
    /// # Errors
    /// See [`KekError`].
    async fn unwrap(&self, org: &OrgName, epoch: Epoch, wrapped: &Wrapped) -> Result<Zeroizing<Vec<u8>>, KekError>;

    /// Wraps anew by the current version what another one has wrapped.
    ///
    /// # Errors
    /// See [`KekError`].
    async fn rewrap(&self, org: &OrgName, epoch: Epoch, wrapped: &Wrapped) -> Result<Wrapped, KekError> {
        let plain = self.unwrap(org, epoch, wrapped).await?;
        self.wrap(org, epoch, &plain).await
    }

    /// Makes a new version, which wraps from now on; of a KEK that the operator sets, the newest is taken.
    ///
    /// # Errors
    /// See [`KekError`]; [`KekError::Unusable`] where that is the operator's to do.
    async fn rotate(&self) -> Result<Rotation, KekError>;

    /// Destroys every version before the one that wraps now; says which. Where that is [`Before::Older`].
    ///
    /// # Errors
    /// See [`KekError`].
    async fn destroy_older(&self, now: &str) -> Result<Vec<String>, KekError>;

    /// Destroys what is named, which wraps nothing any more. Where that is [`Before::Named`].
    ///
    /// # Errors
    /// See [`KekError`].
    async fn destroy(&self, kek: &str) -> Result<(), KekError> {
        Err(KekError::Unusable(format!("{kek} is destroyed with all versions before the newest")))
    }
}
