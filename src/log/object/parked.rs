//! What a log object has of one org, kept apart from the log (rule L10).
//!
//! ```text
//! magic "MCPGPRK1" ‖ length of the header, u32 little-endian ‖ header, JSON ‖ bodies ‖ MAC, see `mac`
//! ```
//!
//! The header is that of the log object, with the sections of the org alone, and beside it the object's id: the org's
//! chain goes on through it as if the object were there.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Header, Needs, Object, ObjectId, array, bodies, check_version};
use crate::log::LogKeys;
use crate::model::OrgName;
use crate::storage::StorageError;

const PARKED: &[u8; 8] = b"MCPGPRK1";

/// What a parked object says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Parked {
    id: ObjectId,
    header: Header,
}

impl Object {
    /// What it has of one org, to be kept apart from the log under the name `path`: the same header with the sections
    /// of the org alone, and the object's own id, authenticated.
    ///
    /// # Errors
    /// When the header cannot be encoded.
    pub fn park(&self, keys: &LogKeys, path: &str, org: &OrgName) -> Result<Bytes, StorageError> {
        let mut header = self.header.clone();
        header.sections.retain(|section| section.org == *org);
        let parked = Parked { id: self.id.clone(), header };
        let text = serde_json::to_vec(&parked).map_err(|e| StorageError::failed("encode", path, e))?;
        let length = u32::try_from(text.len()).map_err(|e| StorageError::failed("encode", path, e))?;
        let mut body = Vec::with_capacity(12 + text.len());
        body.extend_from_slice(PARKED);
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(&text);
        let own = self.header.sections.iter().zip(&self.bodies).filter(|(section, _)| section.org == *org);
        own.for_each(|(_, range)| body.extend_from_slice(self.bytes.get(range.clone()).unwrap_or_default()));
        Ok(keys.seal(path, body))
    }

    /// Reads what [`Object::park`] made.
    ///
    /// # Errors
    /// As [`Object::parse`].
    pub fn unpark(keys: &LogKeys, path: &str, bytes: &Bytes) -> Result<Self, StorageError> {
        let damaged = |reason: &str| StorageError::damaged(path, reason);
        let bytes = keys.open(path, bytes)?;
        let length = array(&bytes, 8).map(u32::from_le_bytes);
        let (Some(PARKED), Some(length)) = (bytes.first_chunk::<8>(), length) else {
            return Err(damaged("it does not start with the magic bytes of a parked object"));
        };
        let end = 12_usize.saturating_add(length as usize);
        let text = bytes.get(12..end).ok_or_else(|| damaged("its header is longer than it"))?;
        #[derive(Deserialize)]
        struct Front {
            header: Needs,
        }
        let Front { header } = serde_json::from_slice(text).map_err(|e| damaged(&format!("its header: {e}")))?;
        check_version(path, header.needs)?;
        let Parked { id, header } = serde_json::from_slice(text).map_err(|e| damaged(&format!("its header: {e}")))?;
        let (bodies, at) = bodies(&header, end);
        if at != bytes.len() {
            return Err(damaged("its sections do not add up to its length"));
        }
        Ok(Self { id, header, bytes, bodies })
    }
}
