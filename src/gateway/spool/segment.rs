//! The bytes of a segment: written, and read back with every doubt. The format is in the spool's module doc.
//!
//! Segments of the form before (`MCPGSPL1`) are read too: their header has an idempotency key in the place of emitter
//! and number. None is written any more.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::OrgName;

const MAGIC: &[u8; 8] = b"MCPGSPL2";
const MAGIC_V1: &[u8; 8] = b"MCPGSPL1";
const FIXED: usize = 20;
const FRAME: usize = 20;

/// The most bytes of a payload.
pub(super) const MAX_PAYLOAD: usize = 256 << 10;

/// The most bytes of a record of the lane `payloads`: a record of 16 MiB, padded, with its envelope.
pub(super) const MAX_SEALED: usize = 20 << 20;

/// The number of the end mark.
const END: u64 = u64::MAX;

/// How far numbers may jump: by so many records that were not written in a row. It keeps chance bytes from being taken
/// for a frame's number before their checksum is looked at.
const FARTHEST: u64 = 1 << 32;

/// What a segment is sent under, always: by it the receiver tells the batch from its retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SentUnder {
    /// A number of this lane of an emitter: a process, whose id no other has.
    Number {
        /// The emitter.
        emitter: Uuid,
        /// From 1 on, rising.
        number: u64,
        /// A number below that the receiver has acknowledged; 0 if none is known.
        after: u64,
    },
    /// An idempotency key: a segment of the form before.
    Key(Uuid),
}

impl SentUnder {
    /// Whether both name the same batch.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number { emitter, number, .. }, Self::Number { emitter: e, number: n, .. }) => {
                (emitter, number) == (e, n)
            }
            (Self::Key(one), Self::Key(other)) => one == other,
            _ => false,
        }
    }
}

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sent_under: SentUnder,
    pub(super) lane: String,
    pub(super) org: OrgName,
    /// The least number that a record of it may have.
    pub(super) first: u64,
    /// When it was made, µs since the epoch.
    pub(super) created_at: i64,
}

/// A header as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbered {
    emitter: Uuid,
    number: u64,
    after: u64,
    lane: String,
    org: OrgName,
    first: u64,
    created_at: i64,
}

/// A header of the form before.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyed {
    key: Uuid,
    lane: String,
    org: OrgName,
    first: u64,
    created_at: i64,
}

impl From<Numbered> for Header {
    fn from(header: Numbered) -> Self {
        let Numbered { emitter, number, after, lane, org, first, created_at } = header;
        Self { sent_under: SentUnder::Number { emitter, number, after }, lane, org, first, created_at }
    }
}

impl From<Keyed> for Header {
    fn from(Keyed { key, lane, org, first, created_at }: Keyed) -> Self {
        Self { sent_under: SentUnder::Key(key), lane, org, first, created_at }
    }
}

impl Header {
    /// The segment's first bytes.
    pub(super) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let Self { sent_under, lane, org, first, created_at } = self.clone();
        let (magic, json) = match sent_under {
            SentUnder::Number { emitter, number, after } => {
                (MAGIC, serde_json::to_vec(&Numbered { emitter, number, after, lane, org, first, created_at })?)
            }
            SentUnder::Key(key) => (MAGIC_V1, serde_json::to_vec(&Keyed { key, lane, org, first, created_at })?),
        };
        let mut out = Vec::with_capacity(FIXED + json.len());
        out.extend_from_slice(magic);
        out.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&checksum(&[&json]));
        out.extend_from_slice(&json);
        Ok(out)
    }

    /// The header, and where it ends.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let magic = bytes.first_chunk::<8>()?;
        let length = u32::from_le_bytes(array(bytes, 8)?);
        let end = FIXED.checked_add(usize::try_from(length).ok()?)?;
        let json = bytes.get(FIXED..end)?;
        (checksum(&[json]) == array(bytes, 12)?).then_some(())?;
        let header = match magic {
            MAGIC => {
                serde_json::from_slice::<Numbered>(json).ok().filter(|header| header.after < header.number)?.into()
            }
            MAGIC_V1 => serde_json::from_slice::<Keyed>(json).ok()?.into(),
            _ => return None,
        };
        Some((header, end))
    }
}

/// How many bytes a frame of a payload has.
pub(super) const fn frame_bytes(payload: usize) -> usize {
    FRAME + payload
}

/// Adds a frame. The payload has at most [`MAX_PAYLOAD`] bytes.
pub(super) fn push_frame(out: &mut Vec<u8>, number: u64, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let number = number.to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&number);
    out.extend_from_slice(&checksum(&[&length, &number, payload]));
    out.extend_from_slice(payload);
}

/// Adds the end mark.
pub(super) fn push_end(out: &mut Vec<u8>, end: End) {
    let mut payload = [0; 16];
    let (records, next) = payload.split_at_mut(8);
    records.copy_from_slice(&end.records.to_le_bytes());
    next.copy_from_slice(&end.next.to_le_bytes());
    push_frame(out, END, &payload);
}

/// What an end mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// How many records the segment has.
    pub(super) records: u64,
    /// The number after its last.
    pub(super) next: u64,
}

impl End {
    /// How many bytes an end mark has.
    pub(super) const BYTES: usize = frame_bytes(16);

    /// The end mark that a segment's last bytes are.
    pub(super) fn at_tail(tail: &[u8]) -> Option<Self> {
        match frame(tail, 0)? {
            Frame { number: END, payload } if payload.end == tail.len() => Self::decode(tail.get(payload)?),
            _ => None,
        }
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        let next = u64::from_le_bytes(array(payload, 8)?);
        (payload.len() == 16).then_some(Self { records: u64::from_le_bytes(array(payload, 0)?), next })
    }
}

/// The header alone, from a segment's first bytes.
pub(super) fn header(bytes: &[u8]) -> Option<Header> {
    Header::decode(bytes).map(|(header, _)| header)
}

/// A segment as it was read.
#[derive(Debug)]
pub(super) struct Contents {
    bytes: Vec<u8>,
    pub(super) header: Header,
    /// The records: number, and where the payload lies.
    records: Vec<(u64, Range<usize>)>,
    pub(super) end: Option<End>,
    /// Where the last sound frame ends; what follows is a torn tail.
    pub(super) sound: usize,
    /// Where bytes lie between sound frames that are not frames.
    pub(super) gaps: Vec<Range<usize>>,
}

impl Contents {
    /// Reads a segment; none when not even its header is sound.
    pub(super) fn read(bytes: Vec<u8>) -> Option<Self> {
        let (header, mut at) = Header::decode(&bytes)?;
        let mut contents = Self { bytes, header, records: Vec::new(), end: None, sound: at, gaps: Vec::new() };
        while let Some((start, found)) = contents.next_frame(at) {
            if start > at {
                contents.gaps.push(at..start);
            }
            at = found.payload.end;
            contents.sound = at;
            if found.number == END {
                contents.end = contents.bytes.get(found.payload).and_then(End::decode);
                break;
            }
            contents.records.push((found.number, found.payload));
        }
        Some(contents)
    }

    /// The next sound frame from `at` on, and where it starts.
    fn next_frame(&self, at: usize) -> Option<(usize, Frame)> {
        let least = self.next();
        (at..self.bytes.len()).find_map(|start| {
            let plausible = |number| number == END || (least..least.saturating_add(FARTHEST)).contains(&number);
            let number = u64::from_le_bytes(array(&self.bytes, start + 4)?);
            let found = plausible(number).then(|| frame(&self.bytes, start)).flatten()?;
            Some((start, found))
        })
    }

    /// The number after the last record.
    pub(super) fn next(&self) -> u64 {
        self.records.last().map_or(self.header.first, |(number, _)| number.saturating_add(1))
    }

    pub(super) fn len(&self) -> u64 {
        self.records.len() as u64
    }

    /// Bytes after the last sound frame.
    pub(super) fn torn(&self) -> usize {
        self.bytes.len() - self.sound
    }

    /// The records in their order.
    pub(super) fn records(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.records.iter().map(|(number, payload)| (*number, self.bytes.get(payload.clone()).unwrap_or_default()))
    }

    /// What is wrong with it, in words; a torn tail of a segment without an end mark is not.
    pub(super) fn damage(&self) -> Option<String> {
        if let Some(gap) = self.gaps.first() {
            let more = self.gaps.len() - 1;
            return Some(format!("bytes {} to {} are no record ({more} more such places)", gap.start, gap.end));
        }
        match self.end {
            Some(end) if end.records != self.len() => {
                Some(format!("{} of {} records are there", self.len(), end.records))
            }
            Some(_) if self.torn() > 0 => Some(format!("{} bytes follow its end", self.torn())),
            _ => None,
        }
    }
}

struct Frame {
    number: u64,
    payload: Range<usize>,
}

/// The frame at an offset, if there is a sound one.
fn frame(bytes: &[u8], at: usize) -> Option<Frame> {
    let front = bytes.get(at..at.checked_add(12)?)?;
    let length = usize::try_from(u32::from_le_bytes(array(front, 0)?)).ok()?;
    let number = u64::from_le_bytes(array(front, 4)?);
    let start = at + FRAME;
    let payload = start..start + length;
    let sound = length <= MAX_SEALED && checksum(&[front, bytes.get(payload.clone())?]) == array::<8>(bytes, at + 12)?;
    sound.then_some(Frame { number, payload })
}

fn checksum(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{Contents, End, Header, SentUnder, push_end, push_frame};

    fn header() -> Header {
        Header {
            sent_under: SentUnder::Number { emitter: Uuid::from_u128(1), number: 12, after: 10 },
            lane: "audit".to_owned(),
            org: "acme".parse().unwrap(),
            first: 5,
            created_at: 0,
        }
    }

    fn segment(payloads: &[&[u8]], ended: bool) -> Vec<u8> {
        let mut bytes = header().encode().unwrap();
        for (number, payload) in (5..).zip(payloads) {
            push_frame(&mut bytes, number, payload);
        }
        if ended {
            let records = payloads.len() as u64;
            push_end(&mut bytes, End { records, next: 5 + records });
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let contents = Contents::read(bytes.to_vec()).unwrap();
        contents.records().map(|(number, payload)| (number, payload.to_vec())).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = segment(&[b"{}", b"", b"three"], true);
        assert_eq!(read(&bytes), [(5, b"{}".to_vec()), (6, b"".to_vec()), (7, b"three".to_vec())]);
        let contents = Contents::read(bytes.clone()).unwrap();
        assert_eq!((contents.end, contents.damage()), (Some(End { records: 3, next: 8 }), None));
        assert_eq!(End::at_tail(&bytes[bytes.len() - End::BYTES..]), contents.end);
    }

    #[test]
    fn a_header_of_either_form_is_read_and_one_that_makes_no_sense_is_not() {
        let of = |sent_under| Header { sent_under, ..header() };
        for header in [header(), of(SentUnder::Key(Uuid::from_u128(2)))] {
            assert_eq!(super::header(&header.encode().unwrap()), Some(header));
        }
        let bytes = of(SentUnder::Key(Uuid::from_u128(2))).encode().unwrap();
        assert!(bytes.starts_with(b"MCPGSPL1") && header().encode().unwrap().starts_with(b"MCPGSPL2"));
        let after_itself = of(SentUnder::Number { emitter: Uuid::from_u128(1), number: 12, after: 12 });
        assert_eq!(super::header(&after_itself.encode().unwrap()), None);
        let mut other = header().encode().unwrap();
        other[7] = b'3';
        assert_eq!(super::header(&other), None, "a form that is not known yet");
    }

    #[test]
    fn cut_at_any_byte_it_gives_its_whole_records_and_a_torn_tail() {
        let payloads: [&[u8]; 3] = [b"first", b"second", b"third"];
        let bytes = segment(&payloads, false);
        let header = header().encode().unwrap().len();
        let ends: Vec<_> = (0..=3).map(|n| segment(&payloads[..n], false).len()).collect();
        for cut in 0..bytes.len() {
            let contents = Contents::read(bytes[..cut].to_vec());
            let Some(contents) = contents else {
                assert!(cut < header, "cut at {cut}");
                continue;
            };
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(contents.len(), whole as u64, "cut at {cut}");
            assert_eq!(contents.torn(), cut - ends[whole]);
            assert_eq!(contents.damage(), None, "a torn tail is no damage");
        }
    }

    #[test]
    fn a_record_that_is_missing_under_an_end_mark_is_damage() {
        let mut bytes = header().encode().unwrap();
        push_frame(&mut bytes, 5, b"one");
        push_end(&mut bytes, End { records: 2, next: 7 });
        assert_eq!(Contents::read(bytes).unwrap().damage().unwrap(), "1 of 2 records are there");
    }

    proptest! {
        #[test]
        fn a_changed_byte_loses_at_most_the_record_it_is_in_and_is_noticed(at in 0usize..4096, flip in 1u8..) {
            let payloads: Vec<Vec<u8>> = (0..5u8).map(|n| vec![n; 30]).collect();
            let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
            let bytes = segment(&payloads, true);
            let at = at % bytes.len();
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            match Contents::read(changed) {
                None => prop_assert!(at < header().encode().unwrap().len()),
                Some(contents) => {
                    let sound = read(&bytes);
                    let found: Vec<_> = contents.records().map(|(n, p)| (n, p.to_vec())).collect();
                    prop_assert!(found.len() >= 4 && found.iter().all(|record| sound.contains(record)));
                    let in_end = at >= bytes.len() - End::BYTES;
                    prop_assert!(contents.damage().is_some() || (in_end && contents.end.is_none()));
                }
            }
        }
    }
}
