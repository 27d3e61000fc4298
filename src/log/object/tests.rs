//! Log objects are read as they were written, and nothing that was changed is read as sound.

use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::{Decisions, Front, Object, OrgLimits, Rows, Section, SectionKind, StoredId};
use crate::ingest::{BatchId, Fingerprint, IdempotencyKey, Lane, RowKind};
use crate::log::LogKeys;
use crate::storage::StorageError;

fn keys() -> LogKeys {
    LogKeys::new([3; 32], [])
}

fn batch(value: &str) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("tool", DataType::Utf8, false)]));
    RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(vec![value, "b"]))]).unwrap()
}

fn object(value: &str) -> (RecordBatch, Bytes) {
    let batch = batch(value);
    let mut rows = Rows::new(SectionKind::Samples, &batch, false).unwrap();
    let key = IdempotencyKey::new(RowKind::Sample, b"k").unwrap();
    rows.header.batches = vec![StoredId(BatchId::Key { key, body: Fingerprint(7) })];
    let org: crate::model::OrgName = "acme".parse().unwrap();
    let decisions = Decisions {
        cut: true,
        merges: vec![(0, 9)],
        limits: Some(OrgLimits { series: 1, keys: 2 }),
        repaired: true,
        removal: Some(super::Removal::Removed),
    };
    let sections = vec![
        Section { org: org.clone(), previous: 5, before: None, decisions, rows: None },
        Section { org, previous: 5, before: Some("ab".to_owned()), decisions: Decisions::default(), rows: Some(rows) },
    ];
    let front = Front { seq: 7, writer: Uuid::nil(), written_at: 1, previous: None };
    let (_, pieces) = Object::encode(&keys(), front, sections).unwrap();
    (batch, pieces.concat().into())
}

#[test]
fn what_was_written_is_read_small_or_compressed() {
    for value in ["a".to_owned(), "long".repeat(1000)] {
        let (batch, bytes) = object(&value);
        let object = Object::parse(&keys(), 7, bytes).unwrap();
        assert_eq!(object.read(1, &batch.schema()).unwrap(), batch);
        assert!(object.header.sections[0].decisions.cut);
        assert_eq!(object.header.sections[0].decisions.merges, [(0, 9)]);
        assert!(object.read(0, &batch.schema()).is_err());
    }
}

#[test]
fn an_identity_is_read_as_it_was_written() {
    let lane = Lane { emitter: Uuid::from_u128(99), lane: 3 };
    let id = BatchId::Sequence { lane, number: 12, after: 11, body: Fingerprint(u64::MAX) };
    assert_eq!(StoredId::try_from(String::from(StoredId(id))), Ok(StoredId(id)));
    assert!(StoredId::try_from("s:x".to_owned()).is_err());
}

#[test]
fn an_object_under_another_number_or_cut_short_is_damaged() {
    let (_, bytes) = object("a");
    assert!(Object::parse(&keys(), 8, bytes.clone()).unwrap_err().is_damage());
    for cut in 0..bytes.len() {
        assert!(Object::parse(&keys(), 7, bytes.slice(..cut)).unwrap_err().is_damage(), "cut at {cut}");
    }
}

/// The object of [`object`] with another header, authenticated by the key that all nodes have.
fn with_header(change: impl Fn(&str) -> String) -> Bytes {
    let (_, bytes) = object("a");
    let length = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let (front, rest) = bytes.split_at(20 + length);
    let header = change(std::str::from_utf8(&front[20..]).unwrap());
    let whole = bytes.len() - length + header.len();
    let mut out = front[..8].to_vec();
    out.extend_from_slice(&(whole as u64).to_le_bytes());
    out.extend_from_slice(&(header.len() as u32).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&keys().trailer("wal/00000000000000000007", &out));
    out.extend_from_slice(&rest[LogKeys::trailer_length()..]);
    out.into()
}

/// Rule L11. The rest of a newer header may be of no form that is known.
#[test]
fn an_object_of_a_newer_version_is_the_nodes_trouble_and_no_damage() {
    let newer = |header: &str| header.replacen("\"needs\":2", "\"needs\":99", 1);
    let unlike = |_: &str| "{\"needs\":99,\"seq\":\"seven\"}".to_owned();
    for bytes in [with_header(newer), with_header(unlike)] {
        let refused = Object::parse(&keys(), 7, bytes).unwrap_err();
        assert!(matches!(refused, StorageError::Unusable { .. }), "{refused}");
        assert!(refused.to_string().contains("version 99"), "{refused}");
    }
}

#[test]
fn a_member_that_is_not_known_is_ignored() {
    let more = with_header(|header| header.replacen('{', "{\"color\":\"blue\",", 1));
    assert_eq!(Object::parse(&keys(), 7, more).unwrap().header.sections.len(), 2);
}

/// The same of what is kept of it apart from the log.
#[test]
fn what_is_parked_of_a_newer_version_is_the_nodes_trouble_too() {
    let (_, bytes) = object("a");
    let (path, org) = ("orgs/acme/parked/00000000000000000007", "acme".parse().unwrap());
    let parked = Object::parse(&keys(), 7, bytes).unwrap().park(&keys(), path, &org).unwrap();
    assert_eq!(Object::unpark(&keys(), path, &parked).unwrap().header.sections.len(), 2);
    let body = keys().open(path, &parked).unwrap();
    // Of one length, so that nothing else of it changes.
    let at = body.windows(9).position(|window| window == b"\"needs\":2").unwrap();
    let mut newer = body.to_vec();
    newer[at + 8] = b'9';
    let refused = Object::unpark(&keys(), path, &keys().seal(path, newer)).unwrap_err();
    assert!(matches!(refused, StorageError::Unusable { .. }), "{refused}");
}

proptest! {
    #[test]
    fn a_changed_byte_is_never_read_as_sound(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (batch, bytes) = object("a");
        let mut changed = bytes.to_vec();
        let at = at.index(changed.len());
        changed[at] ^= flip;
        match Object::parse(&keys(), 7, changed.into()) {
            Ok(object) => prop_assert!(object.read(1, &batch.schema()).unwrap_err().is_damage()),
            // The id of a key may turn into that of one that is lacking.
            Err(e) => prop_assert!(e.is_damage() || e.to_string().contains("which this node lacks")),
        }
    }
}
