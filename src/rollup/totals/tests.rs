//! What is counted where.

use super::*;
use crate::rollup::testing::{Sample, batch};

const HOUR: i64 = Granularity::Hour.width();

fn new(max_series: usize) -> RunningTotals {
    RunningTotals::new("default".parse().unwrap(), max_series)
}

fn apply(totals: &mut RunningTotals, now: i64, samples: &[Sample<'_>]) {
    totals.apply(&Digest::of(&batch(samples)).unwrap(), now);
}

/// (workspace, plugin, tool, calls, errors, denials) of every series.
fn counts(totals: &RunningTotals) -> Vec<(&str, &str, &str, u64, u64, u64)> {
    let series = totals.series().iter().map(|series| (totals.name_of(series), series));
    series.map(|(name, s)| (name.workspace, name.plugin, name.tool, s.calls, s.errors, s.denials)).collect()
}

#[test]
fn a_denied_call_is_a_call_and_no_error() {
    let mut totals = new(10);
    let outcomes = ["ok", "client_error", "server_error", "timeout", "policy_denied", "quota_exceeded"];
    apply(&mut totals, 0, &outcomes.map(|outcome| Sample { outcome, ..Sample::default() }));
    assert_eq!(counts(&totals), [("prod", "github", "list_repos", 6, 3, 2)]);
}

#[test]
fn latency_is_of_dispatched_calls_alone() {
    let mut totals = new(10);
    let ran = Sample { tool: "write_file", duration_ms: 3.7, ..Sample::default() };
    let denied = Sample { outcome: "policy_denied", duration_ms: 0.33, ..ran };
    let never = Sample { tool: "delete_file", outcome: "quota_exceeded", ..ran };
    apply(&mut totals, 0, &[denied, ran, denied, denied, never]);
    let series = &totals.series()[0];
    assert_eq!((series.calls, series.denials, series.latency.count()), (4, 3, 1));
    assert_eq!(series.latency.min_ms(), Some(3.7));
    let shown = |tool: usize| totals.tools()[tool].windows.shown(Granularity::Hour, 0).next();
    assert_eq!(shown(0).unwrap().quantile(0.5), Some(3.7));
    assert!(shown(1).is_none(), "nothing of it ever ran");
}

#[test]
fn a_late_sample_counts_in_the_series_and_not_in_a_window_long_past() {
    let mut totals = new(10);
    let now = 100 * HOUR;
    apply(&mut totals, now, &[Sample { started_at: now - 1, ..Sample::default() }]);
    apply(&mut totals, now, &[Sample { started_at: now - 3 * HOUR, ..Sample::default() }]);
    apply(&mut totals, now, &[Sample { started_at: 0, ..Sample::default() }]);
    assert_eq!(totals.series()[0].latency.count(), 3);
    let shown = |granularity| totals.tools()[0].windows.shown(granularity, now).map(Histogram::count).sum::<u64>();
    assert_eq!((shown(Granularity::Hour), shown(Granularity::Day)), (1, 2));
}

#[test]
fn the_windows_of_a_tool_are_over_all_workspaces() {
    let mut totals = new(10);
    let samples = ["prod", "test"].map(|workspace| Sample { workspace, ..Sample::default() });
    apply(&mut totals, 0, &samples);
    assert_eq!((totals.series_count(), totals.tools().len()), (2, 1));
    let latency = totals.tools()[0].windows.shown(Granularity::Hour, 0).next().unwrap();
    assert_eq!(latency.count(), 2);
}

#[test]
fn past_the_cap_new_series_are_one() {
    let mut totals = new(2);
    let names: Vec<String> = (0..7).map(|i| format!("tool_{i}")).collect();
    let samples: Vec<_> = names
        .iter()
        .flat_map(|tool| ["prod", "test"].map(|w| Sample { tool, workspace: w, ..Sample::default() }))
        .collect();
    apply(&mut totals, 0, &samples);
    apply(&mut totals, 0, &samples);
    let expected =
        [("prod", "github", "tool_0", 2, 0, 0), ("test", "github", "tool_0", 2, 0, 0), (OTHER, OTHER, OTHER, 24, 0, 0)];
    assert_eq!(counts(&totals), expected);
    assert_eq!(totals.overflowed_series(), 2, "remembered no further than the cap");
}

#[test]
fn a_tool_that_is_called_other_shares_the_series_past_the_cap() {
    let mut totals = new(1);
    apply(&mut totals, 0, &[Sample { workspace: OTHER, plugin: OTHER, tool: OTHER, ..Sample::default() }]);
    apply(&mut totals, 0, &[Sample::default()]);
    assert_eq!(counts(&totals), [(OTHER, OTHER, OTHER, 2, 0, 0)]);
}

const DAY: i64 = 24 * HOUR;

fn of(tool: &'static str) -> Sample<'static> {
    Sample { tool, ..Sample::default() }
}

fn shown(totals: &RunningTotals) -> Vec<(&str, u64)> {
    totals.shown().map(|series| (totals.name_of(series).tool, series.calls)).collect()
}

#[test]
fn a_series_that_is_silent_for_30_days_makes_room_and_comes_back_with_its_count() {
    let mut totals = new(2);
    apply(&mut totals, 0, &[of("a"), of("a")]);
    apply(&mut totals, DAY, &[of("b")]);
    apply(&mut totals, 30 * DAY - 1, &[of("c")]);
    assert_eq!(shown(&totals), [("a", 2), ("b", 1), (OTHER, 1)], "nothing was silent for long enough");
    apply(&mut totals, 30 * DAY, &[of("c")]);
    assert_eq!(shown(&totals), [("b", 1), (OTHER, 1), ("c", 1)], "the most silent one made room");
    let mut totals = new(2);
    apply(&mut totals, 0, &[of("a"), of("a")]);
    apply(&mut totals, DAY, &[of("b")]);
    apply(&mut totals, 30 * DAY, &[of("c")]);
    assert_eq!(shown(&totals), [("b", 1), ("c", 1)]);
    assert_eq!((totals.series_count(), totals.overflowed_series()), (2, 0));
    apply(&mut totals, 31 * DAY, &[of("a")]);
    assert_eq!(shown(&totals), [("a", 3), ("c", 1)]);
    // It all outlasts a snapshot, and changes upon one.
    let mut read = RunningTotals::decode(&totals.encode(), 2).unwrap();
    assert_eq!(read.encode(), totals.encode());
    let marked = totals.mark();
    apply(&mut totals, 61 * DAY, &[of("b")]);
    assert_eq!(shown(&totals), [("a", 3), ("b", 2)]);
    read.apply_changes(&totals.encode_changes(marked)).unwrap();
    assert_eq!((shown(&read), read.encode()), (shown(&totals), totals.encode()));
}

#[test]
fn one_plugin_leaves_places_to_the_others_and_is_named() {
    let mut totals = new(100);
    let names: Vec<String> = (0..120).map(|n| format!("made_up_{n}")).collect();
    let noisy: Vec<_> = names.iter().map(|tool| Sample { plugin: "noisy", tool, ..Sample::default() }).collect();
    apply(&mut totals, 0, &noisy);
    apply(&mut totals, 0, &[Sample { plugin: "quiet", tool: "t", ..Sample::default() }]);
    let quiet: Vec<_> = totals.shown().filter(|s| totals.name_of(s).plugin == "quiet").map(|s| s.calls).collect();
    assert_eq!(quiet, [1]);
    assert_eq!(totals.overflowed_by().map(|(_, plugin, count)| (plugin, count)).collect::<Vec<_>>(), [("noisy", 30)]);
    assert_eq!(totals.overflowed_series(), 30);
    let read = RunningTotals::decode(&totals.encode(), 100).unwrap();
    assert_eq!(read.overflowed_by().collect::<Vec<_>>(), totals.overflowed_by().collect::<Vec<_>>());
}

#[test]
fn expired_windows_give_their_memory_back_and_take_no_count_away() {
    let mut totals = new(10);
    apply(&mut totals, 0, &[Sample::default()]);
    let before = totals.size_bytes();
    totals.expire(1000 * HOUR);
    assert!(totals.size_bytes() < before);
    assert_eq!(totals.series()[0].latency.count(), 1);
}
