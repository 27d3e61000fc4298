//! The chain: each entry holds the hash of the one before it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringBuilder};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use super::entry::Columns;
use super::{AuditError, Hash};

/// Where a chain stands: how many entries there are, and the last one's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChainHead {
    /// The number of entries, which is the next one's `seq`.
    pub size: u64,
    /// `entry_hash` of the last entry; zeros before the first.
    pub last: Hash,
}

/// What the tree holds of an entry: 73 bytes, `0x01 ‖ seq, big-endian ‖ prev_hash ‖ entry_hash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// The entry's number.
    pub seq: u64,
    /// The hash of the entry before it.
    pub prev_hash: Hash,
    /// Its own hash.
    pub entry_hash: Hash,
}

impl Leaf {
    /// The length of its bytes.
    pub const LENGTH: usize = 73;

    /// Its bytes.
    pub fn bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [1; Self::LENGTH];
        bytes[1..9].copy_from_slice(&self.seq.to_be_bytes());
        bytes[9..41].copy_from_slice(&self.prev_hash.0);
        bytes[41..].copy_from_slice(&self.entry_hash.0);
        bytes
    }

    /// The leaf that these are the bytes of, if they are of any.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (prev_hash, rest) = rest.split_first_chunk()?;
        let entry_hash = rest.try_into().ok()?;
        let leaf = Self { seq: u64::from_be_bytes(*seq), prev_hash: Hash(*prev_hash), entry_hash: Hash(entry_hash) };
        (*version == 1).then_some(leaf)
    }
}

/// Events that have become entries.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The chain after the last of them.
    pub head: ChainHead,
    /// They, of the schema `audit_log`.
    pub batch: RecordBatch,
    /// Their leaves.
    pub leaves: Vec<Leaf>,
}

/// Numbers and chains `events`, of the schema `audit_event`, after `head`; gives entries of `schema`, which is
/// `audit_log`.
///
/// # Errors
/// When an event is not of the form that validation makes sure of.
pub fn seal(schema: &SchemaRef, origin: &str, head: &ChainHead, events: &RecordBatch) -> Result<Sealed, AuditError> {
    let columns = Columns::of(events)?;
    columns.check_complete()?;
    let rows = events.num_rows();
    let (mut head, mut leaves, mut canonical) = (*head, Vec::with_capacity(rows), Vec::with_capacity(1_024));
    for row in 0..rows {
        let (seq, prev_hash) = (head.size, head.last);
        canonical.clear();
        columns.write_canonical(row, origin, seq, &prev_hash, &mut canonical)?;
        let entry_hash = Hash::of(&[&canonical]);
        leaves.push(Leaf { seq, prev_hash, entry_hash });
        head = ChainHead { size: seq + 1, last: entry_hash };
    }
    let number = |leaf: &Leaf| i64::try_from(leaf.seq).map_err(|_| AuditError::Form("the ledger is full".to_owned()));
    let seqs = leaves.iter().map(number).collect::<Result<Vec<_>, _>>()?;
    let hashes = |of: fn(&Leaf) -> &Hash| -> ArrayRef {
        let (mut texts, mut text) = (StringBuilder::with_capacity(rows, rows * 64), Vec::with_capacity(64));
        for leaf in &leaves {
            text.clear();
            of(leaf).write_hex(&mut text);
            texts.append_value(String::from_utf8_lossy(&text));
        }
        Arc::new(texts.finish())
    };
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "seq" => Ok(Arc::new(Int64Array::from(seqs.clone())) as ArrayRef),
        "prev_hash" => Ok(hashes(|leaf| &leaf.prev_hash)),
        "entry_hash" => Ok(hashes(|leaf| &leaf.entry_hash)),
        name => events.column_by_name(name).cloned().ok_or_else(|| AuditError::Form(format!("no column {name}"))),
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let batch = RecordBatch::try_new(Arc::clone(schema), columns).map_err(|e| AuditError::Form(e.to_string()))?;
    Ok(Sealed { head, batch, leaves })
}

#[cfg(test)]
mod tests {
    use super::{Hash, Leaf};

    #[test]
    fn a_leaf_is_73_bytes_and_can_be_read_back() {
        let leaf = Leaf { seq: 0x0102, prev_hash: Hash([7; 32]), entry_hash: Hash([9; 32]) };
        let bytes = leaf.bytes();
        assert_eq!(bytes[..10], [1, 0, 0, 0, 0, 0, 0, 1, 2, 7]);
        assert_eq!(bytes[72], 9);
        assert_eq!(Leaf::parse(&bytes), Some(leaf));
        for bad in [&bytes[..72], &[&bytes[..], &[0]].concat(), &[&[2], &bytes[1..]].concat(), &[]] {
            assert_eq!(Leaf::parse(bad), None);
        }
    }
}
