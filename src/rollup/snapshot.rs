//! The snapshot of an org's running totals, version 3: what makes counters outlive restarts, compaction and retention.
//!
//! | part | form |
//! |---|---|
//! | magic and version | 8 bytes, `MCPGTOT` and 5 |
//! | org | text |
//! | folded series | count; for each its hash, 8 bytes little-endian, ascending |
//! | whose they were | count; for each, by name: workspace, plugin, how many |
//! | series | count; for each, in order of first appearance: workspace, plugin, tool, calls, errors, denials, when it began, when it was last counted in, whether it is a tombstone, histogram |
//! | tools | for each (plugin, tool), in order of first appearance among the series: hour windows, day windows |
//! | – windows | count; for each, by ascending start: start in hours or days since the Unix epoch, signed; histogram |
//! | checksum | 32 bytes, BLAKE3 of all before |
//!
//! A series' beginning is in microseconds since the Unix epoch, signed, 0 if it is not known. Numbers are varints,
//! signed ones zigzag. A text or histogram is its length and its bytes; histograms are in the form of [`super::codec`].
//! The same totals have the same bytes on every node. A reader checks the checksum first, then every byte: a snapshot
//! is taken whole or not at all. The cap on series is a setting and not part of it: with a lower cap, the series there
//! are stay.
//!
//! Version 2, of magic 3 (and 4 for changes), says neither whose the folded series were nor when a series began and was
//! counted in.
//!
//! Version 1, of magic 1 (and 2 for changes), has no calls: its histograms counted denied calls too, so the count of
//! each is its calls. It is read as it is; what it counted of denied calls stays in those histograms.

use super::codec::{DecodeError, encode};
use super::digest::SeriesName;
use super::totals::Series;
use super::windows::{Window, Windows};
use super::wire::{Malformed, Reader, put_bytes, put_signed, put_varint};
use super::{Granularity, Histogram, RunningTotals};
use crate::model::OrgName;

/// What every snapshot begins with; its last byte is the form.
const MAGIC: &[u8; 8] = b"MCPGTOT\x05";
/// What the changes between two snapshots begin with: the parts of a snapshot, but that each series is followed by the
/// windows of its tool, and no other tool's windows are there.
const CHANGES: &[u8; 8] = b"MCPGTOT\x06";
/// The same of version 2.
const MAGIC_2: &[u8; 8] = b"MCPGTOT\x03";
const CHANGES_2: &[u8; 8] = b"MCPGTOT\x04";
/// The same of version 1.
const MAGIC_1: &[u8; 8] = b"MCPGTOT\x01";
const CHANGES_1: &[u8; 8] = b"MCPGTOT\x02";

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
        put_hashes(&mut out, &self.all_overflowed());
        self.put_overflowed_by(&mut out);
        put_varint(&mut out, self.series().len() as u64);
        self.series().iter().for_each(|series| self.put_series(&mut out, series, &mut scratch));
        self.tools().iter().for_each(|tool| put_windows(&mut out, &tool.windows, &mut scratch));
        let checksum = blake3::hash(&out);
        out.extend(checksum.as_bytes());
        out
    }

    /// What has changed since an epoch that [`RunningTotals::mark`] ended, as bytes: every series that was counted in
    /// since, as it is now, each with the windows of its tool. Put upon the totals of then, they give those of now.
    pub fn encode_changes(&self, since: u64) -> Vec<u8> {
        let mut out = CHANGES.to_vec();
        let mut scratch = Vec::new();
        put_bytes(&mut out, self.org().as_str().as_bytes());
        put_hashes(&mut out, &self.overflowed_since(since));
        self.put_overflowed_by(&mut out);
        put_varint(&mut out, self.changed_since(since).count() as u64);
        for series in self.changed_since(since) {
            self.put_series(&mut out, series, &mut scratch);
            if let Some(tool) = self.tools().get(series.tool) {
                put_windows(&mut out, &tool.windows, &mut scratch);
            }
        }
        let checksum = blake3::hash(&out);
        out.extend(checksum.as_bytes());
        out
    }

    fn put_overflowed_by(&self, out: &mut Vec<u8>) {
        put_varint(out, self.overflowed_by().count() as u64);
        for (workspace, plugin, count) in self.overflowed_by() {
            [workspace, plugin].iter().for_each(|part| put_bytes(out, part.as_bytes()));
            put_varint(out, count);
        }
    }

    fn read_overflowed_by(&mut self, reader: &mut Reader<'_>, version: Version) -> Result<(), SnapshotError> {
        if version >= Version::Three {
            for _ in 0..reader.count("whose the folded series were")? {
                let (workspace, plugin) = (text(reader, "a workspace")?, text(reader, "a plugin")?);
                self.restore_overflowed_by(workspace, plugin, reader.varint("how many were folded")?);
            }
        }
        Ok(())
    }

    fn put_series(&self, out: &mut Vec<u8>, series: &Series, scratch: &mut Vec<u8>) {
        let name = self.name_of(series);
        [name.workspace, name.plugin, name.tool].iter().for_each(|part| put_bytes(out, part.as_bytes()));
        put_varint(out, series.calls);
        put_varint(out, series.errors);
        put_varint(out, series.denials);
        put_signed(out, series.created);
        put_signed(out, series.counted);
        put_varint(out, u64::from(series.tombstone));
        put_histogram(out, &series.latency, scratch);
    }

    /// Puts what [`RunningTotals::encode_changes`] gave upon the totals that it was made upon.
    ///
    /// # Errors
    /// As [`RunningTotals::decode`]; the totals are of no use then.
    pub fn apply_changes(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let (mut reader, version) = open(bytes, [CHANGES_1, CHANGES_2, CHANGES])?;
        if text(&mut reader, "the org")? != self.org().as_str() {
            return Err(reader.fault("another org").into());
        }
        for _ in 0..reader.count("the folded series")? {
            self.restore_overflowed(u64::from_le_bytes(reader.array("a folded series")?));
        }
        self.read_overflowed_by(&mut reader, version)?;
        for _ in 0..reader.count("the series")? {
            let name = SeriesName {
                workspace: text(&mut reader, "a workspace")?,
                plugin: text(&mut reader, "a plugin")?,
                tool: text(&mut reader, "a tool")?,
            };
            let series = self.series_or_new(name).ok_or(reader.fault("a series that cannot be made"))?;
            read_series(&mut reader, series, version)?;
            let place = series.tool;
            let tool = self.tool_at(place).ok_or(reader.fault("a series without a tool"))?;
            for granularity in Granularity::ALL {
                tool.windows.of_mut(granularity).clear();
            }
            read_windows(&mut reader, &mut tool.windows)?;
        }
        self.recount();
        Ok(reader.end()?)
    }

    /// Reads what [`RunningTotals::encode`] wrote. `max_series` is the setting of today.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version; nothing is guessed at.
    pub fn decode(bytes: &[u8], max_series: usize) -> Result<Self, SnapshotError> {
        let (mut reader, version) = open(bytes, [MAGIC_1, MAGIC_2, MAGIC])?;
        let org: Option<OrgName> = text(&mut reader, "the org")?.parse().ok();
        let mut totals = Self::new(org.ok_or(reader.fault("no name of an org"))?, max_series);
        for _ in 0..reader.count("the folded series")? {
            totals.restore_overflowed(u64::from_le_bytes(reader.array("a folded series")?));
        }
        totals.read_overflowed_by(&mut reader, version)?;
        for _ in 0..reader.count("the series")? {
            let name = SeriesName {
                workspace: text(&mut reader, "a workspace")?,
                plugin: text(&mut reader, "a plugin")?,
                tool: text(&mut reader, "a tool")?,
            };
            let series = totals.restore_series(name).ok_or(reader.fault("the same series a second time"))?;
            read_series(&mut reader, series, version)?;
        }
        totals.recount();
        for windows in totals.restore_windows() {
            read_windows(&mut reader, windows)?;
        }
        reader.end()?;
        Ok(totals)
    }
}

/// Which form of a snapshot, or of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    /// Without calls.
    One,
    /// Without the series' beginnings.
    Two,
    Three,
}

/// A reader of what lies between magic and checksum, once these fit, and the version: the first whose magic it is.
fn open<'a>(bytes: &'a [u8], magic: [&[u8; 8]; 3]) -> Result<(Reader<'a>, Version), SnapshotError> {
    let start = bytes.get(..MAGIC.len()).unwrap_or(bytes);
    let versions = [Version::One, Version::Two, Version::Three];
    let version = magic.into_iter().zip(versions).find(|(magic, _)| start == *magic).map(|(_, version)| version);
    let version = version.ok_or_else(|| SnapshotError::Magic(start.to_vec()))?;
    let (body, checksum) = bytes.split_last_chunk::<{ blake3::OUT_LEN }>().ok_or(SnapshotError::Checksum)?;
    if blake3::hash(body) != *checksum {
        return Err(SnapshotError::Checksum);
    }
    let mut reader = Reader::new(body);
    reader.take(MAGIC.len(), "the magic")?;
    Ok((reader, version))
}

fn put_hashes(out: &mut Vec<u8>, hashes: &[u64]) {
    put_varint(out, hashes.len() as u64);
    hashes.iter().for_each(|hash| out.extend(hash.to_le_bytes()));
}

fn put_windows(out: &mut Vec<u8>, windows: &Windows, scratch: &mut Vec<u8>) {
    for granularity in Granularity::ALL {
        let mut windows: Vec<&Window> = windows.of(granularity).iter().collect();
        windows.sort_by_key(|window| window.start);
        put_varint(out, windows.len() as u64);
        for window in windows {
            put_signed(out, window.start.div_euclid(granularity.width()));
            put_histogram(out, &window.latency, scratch);
        }
    }
}

fn read_windows(reader: &mut Reader<'_>, windows: &mut Windows) -> Result<(), SnapshotError> {
    for granularity in Granularity::ALL {
        for _ in 0..reader.count("the windows of a tool")? {
            let start = reader.signed("a window's start")?.checked_mul(granularity.width());
            let start = start.ok_or(reader.fault("a window out of time"))?;
            windows.of_mut(granularity).push(Window { start, latency: histogram(reader)? });
        }
    }
    Ok(())
}

fn read_series(reader: &mut Reader<'_>, series: &mut Series, version: Version) -> Result<(), SnapshotError> {
    let calls = if version >= Version::Two { Some(reader.varint("the calls")?) } else { None };
    series.errors = reader.varint("the errors")?;
    series.denials = reader.varint("the denials")?;
    if version >= Version::Three {
        series.created = reader.signed("when a series began")?;
        series.counted = reader.signed("when a series was counted in")?;
        series.tombstone = match reader.varint("whether a series is a tombstone")? {
            0 => false,
            1 => true,
            _ => return Err(reader.fault("neither a tombstone nor none").into()),
        };
    }
    series.latency = histogram(reader)?;
    series.calls = calls.unwrap_or(series.latency.count());
    if series.latency.count() > series.calls {
        return Err(reader.fault("more durations than calls").into());
    }
    if series.errors.saturating_add(series.denials) > series.calls {
        return Err(reader.fault("more errors and denials than calls").into());
    }
    Ok(())
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
    use proptest::prelude::*;

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

    proptest! {
        /// Totals restored from a snapshot and the changes since, however often marked, are those that were counted.
        #[test]
        fn changes_upon_a_snapshot_give_the_totals(
            batches in prop::collection::vec((0usize..6, 0i64..60, any::<bool>()), 1..30), cap in 1usize..5,
        ) {
            let mut totals = RunningTotals::new("acme".parse().unwrap(), cap);
            let mut restored = RunningTotals::decode(&totals.encode(), cap).unwrap();
            let mut marked = totals.mark();
            for (tool, hour, mark) in batches {
                let tool = format!("tool_{tool}");
                let now = hour * Granularity::Hour.width();
                let sample = Sample { tool: &tool, started_at: now, ..Sample::default() };
                totals.apply(&Digest::of(&batch(&[sample])).unwrap(), now);
                if mark {
                    restored.apply_changes(&totals.encode_changes(marked)).unwrap();
                    marked = totals.mark();
                    prop_assert_eq!(restored.encode(), totals.encode());
                }
            }
            prop_assert!(restored.apply_changes(&totals.encode()).is_err());
        }
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
                    assert_eq!(read.series().len(), 3, "byte {at}");
                }
            }
            assert!(RunningTotals::decode(&sealed(body[..at].to_vec()), 2).is_err(), "cut off at {at}");
        }
    }

    /// The totals in the form of an earlier version: of the first, whose histograms counted every call, or of the
    /// second.
    fn earlier_form(totals: &RunningTotals, magic: &[u8; 8], changes: bool) -> Vec<u8> {
        let (mut out, mut scratch) = (magic.to_vec(), Vec::new());
        put_bytes(&mut out, totals.org().as_str().as_bytes());
        put_hashes(&mut out, &totals.all_overflowed());
        put_varint(&mut out, totals.series().len() as u64);
        for series in totals.series() {
            let name = totals.name_of(series);
            [name.workspace, name.plugin, name.tool].iter().for_each(|part| put_bytes(&mut out, part.as_bytes()));
            if [MAGIC_2, CHANGES_2].contains(&magic) {
                put_varint(&mut out, series.calls);
            }
            put_varint(&mut out, series.errors);
            put_varint(&mut out, series.denials);
            put_histogram(&mut out, &series.latency, &mut scratch);
            if changes {
                put_windows(&mut out, &totals.tools()[series.tool].windows, &mut scratch);
            }
        }
        if !changes {
            totals.tools().iter().for_each(|tool| put_windows(&mut out, &tool.windows, &mut scratch));
        }
        sealed(out)
    }

    #[test]
    fn version_1_is_read_as_it_is_and_counts_on() {
        let totals = without_beginnings(totals());
        let old = earlier_form(&totals, MAGIC_1, false);
        let mut read = RunningTotals::decode(&old, 2).unwrap();
        assert_eq!(read.encode(), totals.encode(), "no call was denied, so the calls are the histograms' counts");
        read.apply_changes(&earlier_form(&totals, CHANGES_1, true)).unwrap();
        assert_eq!(read.encode(), totals.encode());
        let denied = Sample { tool: "a", outcome: "policy_denied", ..Sample::default() };
        let marked = read.mark();
        read.apply(&Digest::of(&batch(&[denied])).unwrap(), 0);
        let series = &read.series()[0];
        assert_eq!((series.calls, series.denials, series.latency.count()), (2, 1, 1));
        let mut again = RunningTotals::decode(&old, 2).unwrap();
        again.apply_changes(&read.encode_changes(marked)).unwrap();
        assert_eq!(again.encode(), read.encode());
    }

    /// The same, as an earlier version writes it.
    fn without_beginnings(mut totals: RunningTotals) -> RunningTotals {
        let names: Vec<_> = totals.series().iter().map(|series| totals.name_of(series)).map(owned).collect();
        for (workspace, plugin, tool) in &names {
            let series = totals.series_or_new(SeriesName { workspace, plugin, tool }).unwrap();
            (series.created, series.counted) = (0, 0);
        }
        totals.forget_overflowed_by();
        totals
    }

    fn owned(name: SeriesName<'_>) -> (String, String, String) {
        (name.workspace.to_owned(), name.plugin.to_owned(), name.tool.to_owned())
    }

    #[test]
    fn version_2_is_read_and_does_not_know_when_its_series_began() {
        let totals = without_beginnings(totals());
        let mut read = RunningTotals::decode(&earlier_form(&totals, MAGIC_2, false), 2).unwrap();
        assert_eq!(read.encode(), totals.encode());
        read.apply_changes(&earlier_form(&totals, CHANGES_2, true)).unwrap();
        assert_eq!(read.encode(), totals.encode());
        let new = Sample { tool: "e", ..Sample::default() };
        read.set_max_series(10);
        read.apply(&Digest::of(&batch(&[new])).unwrap(), 7);
        let began: Vec<i64> =
            RunningTotals::decode(&read.encode(), 2).unwrap().series().iter().map(|s| s.created).collect();
        assert_eq!(began, [0, 0, 0, 7]);
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = totals().encode();
        bytes[7] = 9;
        let error = RunningTotals::decode(&bytes, 2).unwrap_err();
        assert_eq!(error, SnapshotError::Magic(b"MCPGTOT\x09".to_vec()));
    }
}
