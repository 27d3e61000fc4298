//! The snapshot of an org's running totals, version 1: what makes counters outlive restarts, compaction and retention.
//!
//! | part | form |
//! |---|---|
//! | magic and version | 8 bytes, `MCPGTOT` and 1 |
//! | org | text |
//! | folded series | count; for each its hash, 8 bytes little-endian, ascending |
//! | series | count; for each, in order of first appearance: workspace, plugin, tool, errors, denials, histogram |
//! | tools | for each (plugin, tool), in order of first appearance among the series: hour windows, day windows |
//! | – windows | count; for each, by ascending start: start in hours or days since the Unix epoch, signed; histogram |
//! | checksum | 32 bytes, BLAKE3 of all before |
//!
//! Numbers are varints, signed ones zigzag. A text or histogram is its length and its bytes; histograms are in the form of
//! [`super::codec`]. The same totals have the same bytes on every node. A reader checks the checksum first, then every byte:
//! a snapshot is taken whole or not at all. The cap on series is a setting and not part of it: with a lower cap, the series
//! there are stay.

use super::codec::{DecodeError, encode};
use super::digest::SeriesName;
use super::windows::Window;
use super::wire::{Malformed, Reader, put_bytes, put_signed, put_varint};
use super::{Granularity, Histogram, RunningTotals};
use crate::model::OrgName;

/// What every snapshot begins with; its last byte is the version.
const MAGIC: [u8; 8] = *b"MCPGTOT\x01";

/// Why bytes are no snapshot of running totals.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Something else, or written by a newer program.
    #[error("no snapshot of running totals that this program reads: it begins with {0:02x?} and not with {MAGIC:02x?}")]
    Magic(Vec<u8>),
    /// Changed or cut off since it was written.
    #[error("snapshot of running totals: the checksum does not fit, so the object is damaged")]
    Checksum,
    /// Whole as it was written, yet not sound.
    #[error("snapshot of running totals: {0}")]
    Malformed(#[from] Malformed),
    /// A histogram in it cannot be read.
    #[error("snapshot of running totals: {0}")]
    Histogram(#[from] DecodeError),
}

impl RunningTotals {
    /// The whole state as bytes. Equal totals have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let mut scratch = Vec::new();
        put_bytes(&mut out, self.org().as_str().as_bytes());
        let overflowed = self.overflowed();
        put_varint(&mut out, overflowed.len() as u64);
        overflowed.for_each(|hash| out.extend(hash.to_le_bytes()));
        put_varint(&mut out, self.series().len() as u64);
        for series in self.series() {
            let name = self.name_of(series);
            [name.workspace, name.plugin, name.tool].iter().for_each(|part| put_bytes(&mut out, part.as_bytes()));
            put_varint(&mut out, series.errors);
            put_varint(&mut out, series.denials);
            put_histogram(&mut out, &series.latency, &mut scratch);
        }
        for (tool, granularity) in self.tools().iter().flat_map(|tool| Granularity::ALL.map(|g| (tool, g))) {
            let mut windows: Vec<&Window> = tool.windows.of(granularity).iter().collect();
            windows.sort_by_key(|window| window.start);
            put_varint(&mut out, windows.len() as u64);
            for window in windows {
                put_signed(&mut out, window.start.div_euclid(granularity.width()));
                put_histogram(&mut out, &window.latency, &mut scratch);
            }
        }
        let checksum = blake3::hash(&out);
        out.extend(checksum.as_bytes());
        out
    }

    /// Reads what [`RunningTotals::encode`] wrote. `max_series` is the setting of today.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version; nothing is guessed at.
    pub fn decode(bytes: &[u8], max_series: usize) -> Result<Self, SnapshotError> {
        let start = bytes.get(..MAGIC.len()).unwrap_or(bytes);
        if start != MAGIC {
            return Err(SnapshotError::Magic(start.to_vec()));
        }
        let (body, checksum) = bytes.split_last_chunk::<{ blake3::OUT_LEN }>().ok_or(SnapshotError::Checksum)?;
        if blake3::hash(body) != *checksum {
            return Err(SnapshotError::Checksum);
        }
        let mut reader = Reader::new(body);
        reader.take(MAGIC.len(), "the magic")?;
        let org: Option<OrgName> = text(&mut reader, "the org")?.parse().ok();
        let mut totals = Self::new(org.ok_or(reader.fault("no name of an org"))?, max_series);
        for _ in 0..reader.count("the folded series")? {
            totals.restore_overflowed(u64::from_le_bytes(reader.array("a folded series")?));
        }
        for _ in 0..reader.count("the series")? {
            let name = SeriesName {
                workspace: text(&mut reader, "a workspace")?,
                plugin: text(&mut reader, "a plugin")?,
                tool: text(&mut reader, "a tool")?,
            };
            let series = totals.restore_series(name).ok_or(reader.fault("the same series a second time"))?;
            series.errors = reader.varint("the errors")?;
            series.denials = reader.varint("the denials")?;
            series.latency = histogram(&mut reader)?;
            if series.errors.saturating_add(series.denials) > series.latency.count() {
                return Err(reader.fault("more errors and denials than calls").into());
            }
        }
        for windows in totals.restore_windows() {
            for granularity in Granularity::ALL {
                for _ in 0..reader.count("the windows of a tool")? {
                    let start = reader.signed("a window's start")?.checked_mul(granularity.width());
                    let start = start.ok_or(reader.fault("a window out of time"))?;
                    windows.of_mut(granularity).push(Window { start, latency: histogram(&mut reader)? });
                }
            }
        }
        reader.end()?;
        Ok(totals)
    }
}

fn put_histogram(out: &mut Vec<u8>, histogram: &Histogram, scratch: &mut Vec<u8>) {
    scratch.clear();
    encode(histogram, scratch);
    put_bytes(out, scratch);
}

fn histogram(reader: &mut Reader<'_>) -> Result<Histogram, SnapshotError> {
    Ok(Histogram::decode(reader.bytes("a histogram")?)?)
}

fn text<'a>(reader: &mut Reader<'a>, what: &'static str) -> Result<&'a str, Malformed> {
    str::from_utf8(reader.bytes(what)?).map_err(|_| reader.fault("a text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollup::Digest;
    use crate::rollup::testing::{Sample, batch};

    fn totals() -> RunningTotals {
        let mut totals = RunningTotals::new("acme".parse().unwrap(), 2);
        let tools = ["a", "b", "c", "d"];
        let samples = tools.map(|tool| Sample { tool, outcome: "timeout", ..Sample::default() });
        totals.apply(&Digest::of(&batch(&samples)).unwrap(), Granularity::Hour.width());
        totals
    }

    /// The bytes with a checksum that fits them.
    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        body.extend(*blake3::hash(&body).as_bytes());
        body
    }

    #[test]
    fn totals_come_back_with_their_windows_and_what_was_folded() {
        let bytes = totals().encode();
        let read = RunningTotals::decode(&bytes, 2).unwrap();
        assert_eq!(read.encode(), bytes);
        assert_eq!((read.series_count(), read.overflowed_series()), (3, 2));
        let windows: Vec<usize> = read.tools().iter().map(|tool| tool.windows.of(Granularity::Hour).len()).collect();
        assert_eq!(windows, [1, 1, 1]);
    }

    #[test]
    fn a_lower_cap_drops_no_series() {
        assert_eq!(RunningTotals::decode(&totals().encode(), 0).unwrap().series_count(), 3);
    }

    #[test]
    fn a_changed_or_missing_byte_is_found_out() {
        let good = totals().encode();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            assert!(RunningTotals::decode(&bytes, 2).is_err(), "byte {at} changed");
            assert!(RunningTotals::decode(&good[..at], 2).is_err(), "cut off at {at}");
        }
    }

    #[test]
    fn behind_a_fitting_checksum_every_byte_is_still_checked() {
        let good = totals().encode();
        let body = &good[..good.len() - blake3::OUT_LEN];
        for at in MAGIC.len()..body.len() {
            for changed in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = body.to_vec();
                bytes[at] = changed;
                // Another number may be another sound snapshot; it must then be that one, and not half of one.
                if let Ok(read) = RunningTotals::decode(&sealed(bytes.clone()), 2) {
                    assert_eq!(read.series_count(), 3, "byte {at}");
                }
            }
            assert!(RunningTotals::decode(&sealed(body[..at].to_vec()), 2).is_err(), "cut off at {at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = totals().encode();
        bytes[7] = 2;
        let error = RunningTotals::decode(&bytes, 2).unwrap_err();
        assert_eq!(error, SnapshotError::Magic(b"MCPGTOT\x02".to_vec()));
    }
}
