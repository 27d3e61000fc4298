//! Which entries may be gone: what the entries `ledger.prune`, `ledger.hold` and `ledger.release` under the checkpoint
//! come to.
//!
//! A removal counts if all of this is so; else it excuses nothing, and the entries it names are missing:
//!
//! 1. It is the control plane's (see below).
//! 2. No `ledger.hold` before it is in force. A hold counts from any writer, a release only if it is the control
//!    plane's.
//! 3. `first_kept` is at most its own `seq`.
//! 4. It names segments by file name and SHA-256, in order and without gaps, and the last of them ends before
//!    `first_kept`.
//! 5. The first of them begins at entry 0, or where an earlier removal that counts ended. The entry of that earlier
//!    removal may have been removed itself. Then nothing before the first segment may be there, or `after` names that
//!    entry's number, and it is among the entries that are gone.
//!
//! An entry is the control plane's if its actor is `system:control-plane@<node>`; or if it is a caller who asked the
//! control plane for it, `service:<token>` or `anonymous`, and the entry has nothing that only an emitter's can have:
//! no `workspace`, `instance`, `request_id`, `trace_id`, `span_id`, `invocation_id`, `emitter_seq`, and no
//! `submitted_by` in its `detail`. Emitters cannot send actions `ledger.…`, and what they send by a token is stamped
//! with `submitted_by`; so this is a second lock, behind the first one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::rows::Notice;
use crate::audit::Hash;
use crate::audit::segment::SegmentName;

/// A segment that a removal names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: SegmentName,
    pub(super) sha256: Hash,
    /// The entry that names it.
    pub(super) entry: u64,
}

/// What has been seen of the ledger up to an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    /// The first entry that is there.
    pub(super) first: Option<u64>,
    /// Ranges without entries, ends left out.
    pub(super) gaps: &'a [(u64, u64)],
}

/// The removals that the entries seen so far justify.
#[derive(Debug, Default)]
pub(super) struct Removals {
    hold: Option<u64>,
    /// Where removals that count ended.
    ends: BTreeSet<u64>,
    named: Vec<Named>,
    /// Removals that do not count, and why: the newest few.
    refused: BTreeMap<u64, String>,
}

/// Removals without effect that are remembered, to say why they excuse nothing.
const MOST_REFUSED: usize = 16;

impl Removals {
    /// Takes the next entry in order by which the ledger speaks of itself.
    pub(super) fn take(&mut self, notice: &Notice, seen: Seen<'_>) {
        match notice.action.as_str() {
            "ledger.hold" => {
                self.hold.get_or_insert(notice.seq);
            }
            "ledger.release" if notice.is_own => self.hold = None,
            "ledger.prune" => match self.prune(notice, seen) {
                Ok((first_kept, named)) => {
                    self.ends.insert(first_kept);
                    self.named.extend(named);
                }
                Err(why) => {
                    self.refused.insert(notice.seq, why);
                    if self.refused.len() > MOST_REFUSED {
                        self.refused.pop_first();
                    }
                }
            },
            _ => {}
        }
    }

    fn prune(&self, notice: &Notice, seen: Seen<'_>) -> Result<(u64, Vec<Named>), String> {
        if !notice.is_own {
            return Err("it is not the control plane's".to_owned());
        }
        if let Some(hold) = self.hold {
            return Err(format!("the ledger was on hold since entry {hold}"));
        }
        let detail: Value =
            notice.detail.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let number = |name: &str| detail.get(name)?.as_str()?.parse::<u64>().ok();
        let first_kept = number("first_kept").ok_or("it has no first_kept")?;
        if first_kept > notice.seq {
            return Err(format!("its first_kept, {first_kept}, is after itself"));
        }
        let segments = detail.get("segments").and_then(Value::as_array).ok_or("it names no segments")?;
        let named = segments.iter().map(|segment| {
            let text = |name: &str| segment.get(name)?.as_str();
            Some(Named { name: text("name")?.parse().ok()?, sha256: text("sha256")?.parse().ok()?, entry: notice.seq })
        });
        let named: Vec<Named> = named.collect::<Option<_>>().ok_or("it names a segment without its SHA-256")?;
        let (Some(first), Some(last)) = (named.first(), named.last()) else {
            return Err("it names no segments".to_owned());
        };
        let follow = named
            .iter()
            .zip(named.iter().skip(1))
            .all(|(one, next)| one.name.last.checked_add(1) == Some(next.name.first));
        if !follow || last.name.last.checked_add(1) != Some(first_kept) {
            return Err(format!("the segments that it names are not the ones before entry {first_kept}"));
        }
        self.begins(first.name.first, notice.seq, number("after"), seen)?;
        Ok((first_kept, named))
    }

    /// Whether a removal may begin with the entry `first`.
    fn begins(&self, first: u64, entry: u64, after: Option<u64>, seen: Seen<'_>) -> Result<(), String> {
        let is_gone = |seq: u64| seen.gaps.iter().any(|(from, to)| (*from..*to).contains(&seq));
        let known = first == 0
            || self.ends.contains(&first)
            || seen.first.is_none_or(|there| there >= first)
            || after.is_some_and(|after| (first..entry).contains(&after) && is_gone(after));
        if known { Ok(()) } else { Err(format!("it begins with entry {first}, and no removal ended there")) }
    }

    /// The first entry that must be there.
    pub(super) fn first_kept(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The segments that removals which count name.
    pub(super) fn named(&self) -> &[Named] {
        &self.named
    }

    /// Why entries from `seq` on are not excused, if there is a removal that might be meant to.
    pub(super) fn refusal(&self, seq: u64) -> String {
        let told =
            self.refused.iter().map(|(entry, why)| format!("; entry {entry}, ledger.prune, does not count: {why}"));
        if self.refused.is_empty() {
            format!("; no entry ledger.prune says that entry {seq} was removed")
        } else {
            told.collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Notice, Removals, Seen};

    const NOTHING_GONE: Seen<'static> = Seen { first: Some(0), gaps: &[] };

    fn segments(ranges: &[(u64, u64)]) -> Value {
        let named = ranges.iter().map(
            |(first, last)| json!({ "name": format!("{first:020}-{last:020}.parquet"), "sha256": "ab".repeat(32) }),
        );
        named.collect()
    }

    fn prune(seq: u64, first_kept: u64, ranges: &[(u64, u64)]) -> Notice {
        let detail = json!({ "first_kept": first_kept.to_string(), "segments": segments(ranges) });
        Notice { seq, action: "ledger.prune".to_owned(), detail: Some(detail.to_string()), is_own: true }
    }

    fn other(seq: u64, action: &str, is_own: bool) -> Notice {
        Notice { seq, action: action.to_owned(), detail: None, is_own }
    }

    fn first_kept(notices: &[Notice], seen: Seen<'_>) -> u64 {
        let mut removals = Removals::default();
        notices.iter().for_each(|notice| removals.take(notice, seen));
        removals.first_kept()
    }

    #[test]
    fn a_removal_from_the_beginning_counts_and_so_does_the_next_one() {
        let first = prune(50, 20, &[(0, 9), (10, 19)]);
        assert_eq!(first_kept(std::slice::from_ref(&first), NOTHING_GONE), 20);
        assert_eq!(first_kept(&[first.clone(), prune(60, 40, &[(20, 39)])], NOTHING_GONE), 40);
        assert_eq!(first_kept(&[first, prune(60, 40, &[(21, 39)])], NOTHING_GONE), 20);
    }

    #[test]
    fn one_that_names_other_segments_than_those_before_first_kept_does_not_count() {
        for ranges in [&[(0, 9)][..], &[(0, 9), (11, 19)], &[(0, 9), (10, 20)], &[(10, 19)], &[(10, 19), (0, 9)], &[]] {
            assert_eq!(first_kept(&[prune(50, 20, ranges)], NOTHING_GONE), 0, "{ranges:?}");
        }
    }

    #[test]
    fn one_of_what_was_not_there_yet_does_not_count() {
        assert_eq!(first_kept(&[prune(20, 20, &[(0, 19)])], NOTHING_GONE), 20);
        assert_eq!(first_kept(&[prune(19, 20, &[(0, 19)])], NOTHING_GONE), 0);
        assert_eq!(first_kept(&[prune(5, 1_000_000_000, &[(0, 999_999_999)])], NOTHING_GONE), 0);
    }

    #[test]
    fn one_under_a_hold_does_not_count_and_only_the_control_plane_ends_a_hold() {
        let pruned = prune(50, 20, &[(0, 19)]);
        let (hold, release) = (other(30, "ledger.hold", false), |is_own| other(40, "ledger.release", is_own));
        assert_eq!(first_kept(&[hold.clone(), pruned.clone()], NOTHING_GONE), 0);
        assert_eq!(first_kept(&[hold.clone(), release(false), pruned.clone()], NOTHING_GONE), 0);
        assert_eq!(first_kept(&[hold, release(true), pruned], NOTHING_GONE), 20);
    }

    #[test]
    fn one_that_is_not_the_control_planes_or_names_no_digests_does_not_count() {
        let good = prune(50, 20, &[(0, 19)]);
        assert_eq!(first_kept(&[Notice { is_own: false, ..good.clone() }], NOTHING_GONE), 0);
        let detail = good.detail.clone().unwrap();
        for bad in [
            detail.replace("sha256", "md5"),
            detail.replace("abab", "xyxy"),
            detail.replace("\"20\"", "20"),
            detail.replace("parquet", "txt"),
            "{}".to_owned(),
        ] {
            assert_eq!(first_kept(&[Notice { detail: Some(bad), ..good.clone() }], NOTHING_GONE), 0);
        }
        assert_eq!(first_kept(&[Notice { detail: None, ..good }], NOTHING_GONE), 0);
    }

    #[test]
    fn the_entry_of_an_earlier_removal_may_have_been_removed_itself() {
        let later = prune(90, 60, &[(20, 59)]);
        let all_gone = Seen { first: Some(60), gaps: &[(0, 60)] };
        assert_eq!(first_kept(std::slice::from_ref(&later), all_gone), 60);
        // An entry before it is there again, or still: then it must name the earlier one, which must be gone.
        let some_there = Seen { first: Some(0), gaps: &[(10, 60)] };
        assert_eq!(first_kept(std::slice::from_ref(&later), some_there), 0);
        let with_after = |after: &str| {
            let detail = later.detail.as_ref().unwrap().replacen('{', &format!("{{\"after\":\"{after}\","), 1);
            Notice { detail: Some(detail), ..later.clone() }
        };
        assert_eq!(first_kept(&[with_after("30")], some_there), 60);
        for wrong in ["5", "19", "70", "90", "200"] {
            assert_eq!(first_kept(&[with_after(wrong)], some_there), 0, "{wrong}");
        }
    }
}
