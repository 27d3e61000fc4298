//! Exemplars: for a series, one call that has a trace, so that a point of a graph leads to a trace.
//!
//! They are no part of the totals. They are kept in the memory of the node that took the samples, and neither in the
//! log nor in a state: a restart forgets them, and of two nodes each shows those of the samples that it took itself.
//! Nothing depends on them.
//!
//! A series has at most two: the slowest dispatched call with a trace of the last minute in which there was one, and
//! the newest call with a trace that failed. They are looked for in the last [`LOOKED_AT`] rows of a batch, so a large
//! batch costs no more than a small one. One that is older than [`LIFETIME`] is not shown and makes room.

use std::hash::{Hash, Hasher};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use hashbrown::{Equivalent, HashMap};

use super::digest::SeriesName;
use crate::model::Outcome;

/// Rows at the end of a batch that are looked at.
const LOOKED_AT: usize = 512;
/// How long a slower call keeps its place, in microseconds.
const KEPT: i64 = 60_000_000;
/// How long an exemplar is shown, in microseconds.
const LIFETIME: i64 = 600_000_000;

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Exemplar {
    pub(super) trace_id: Box<str>,
    /// How long it took.
    pub(super) seconds: f64,
    /// When it ended, in microseconds since the Unix epoch.
    pub(super) at: i64,
}

/// What names a series.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    workspace: Box<str>,
    plugin: Box<str>,
    tool: Box<str>,
}

impl Name {
    fn as_series(&self) -> SeriesName<'_> {
        SeriesName { workspace: &self.workspace, plugin: &self.plugin, tool: &self.tool }
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_series().hash(state);
    }
}

impl Equivalent<Name> for SeriesName<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        *self == name.as_series()
    }
}

/// The exemplars of one series.
#[derive(Debug, Default)]
struct Pair {
    call: Option<Exemplar>,
    error: Option<Exemplar>,
}

impl Pair {
    fn is_over(&self, now: i64) -> bool {
        [&self.call, &self.error].into_iter().flatten().all(|exemplar| exemplar.at < now - LIFETIME)
    }
}

/// The exemplars of one org.
#[derive(Debug, Default)]
pub struct Exemplars(HashMap<Name, Pair>);

/// The calls of a batch that can be exemplars.
#[derive(Debug, Default)]
pub struct Candidates(Vec<(Name, Exemplar, Outcome)>);

impl Candidates {
    /// Those of a canonical batch, at `now`; none if it has no traces.
    pub fn of(batch: &RecordBatch, now: i64) -> Self {
        Self::found(batch, now).unwrap_or_default()
    }

    fn found(batch: &RecordBatch, now: i64) -> Option<Self> {
        let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
        let traces = text("trace_id").filter(|traces| traces.null_count() < traces.len())?;
        let (workspaces, plugins, tools) = (text("workspace")?, text("plugin")?, text("tool")?);
        let outcomes = text("outcome")?;
        let started = batch.column_by_name("started_at")?.as_primitive_opt::<TimestampMicrosecondType>()?;
        let took = batch.column_by_name("duration_ms")?.as_primitive_opt::<Float64Type>()?;
        let mut found = Vec::new();
        for row in batch.num_rows().saturating_sub(LOOKED_AT)..batch.num_rows() {
            let Some(outcome) = Outcome::parse(outcomes.value(row)).filter(|outcome| !outcome.is_denial()) else {
                continue;
            };
            let duration_ms = took.value(row).max(0.0);
            // A gateway's clock may be ahead; what it says is over by now all the same.
            let at = started.value(row).saturating_add((duration_ms * 1e3) as i64).min(now);
            if !traces.is_valid(row) || at < now - LIFETIME {
                continue;
            }
            let name = Name {
                workspace: workspaces.value(row).into(),
                plugin: plugins.value(row).into(),
                tool: tools.value(row).into(),
            };
            found.push((
                name,
                Exemplar { trace_id: traces.value(row).into(), seconds: duration_ms / 1e3, at },
                outcome,
            ));
        }
        Some(Self(found))
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Exemplars {
    /// Takes up what a batch brought, at `now`, for at most so many series.
    pub fn take(&mut self, candidates: Candidates, now: i64, most: usize) {
        for (name, exemplar, outcome) in candidates.0 {
            if self.0.len() >= most && !self.0.contains_key(&name) {
                self.0.retain(|_, pair| !pair.is_over(now));
                if self.0.len() >= most {
                    continue;
                }
            }
            let pair = self.0.entry(name).or_default();
            if outcome.is_error() && pair.error.as_ref().is_none_or(|before| before.at <= exemplar.at) {
                pair.error = Some(exemplar.clone());
            }
            let gives_way = |before: &Exemplar| before.seconds <= exemplar.seconds || before.at < now - KEPT;
            if pair.call.as_ref().is_none_or(gives_way) {
                pair.call = Some(exemplar);
            }
        }
    }

    /// The slow call and the failed call of a series, as far as there are any that are to be shown at `now`.
    pub(super) fn of(&self, series: SeriesName<'_>, now: i64) -> (Option<&Exemplar>, Option<&Exemplar>) {
        let Some(pair) = self.0.get(&series) else { return (None, None) };
        let shown = |exemplar: &&Exemplar| exemplar.at >= now - LIFETIME;
        (pair.call.as_ref().filter(shown), pair.error.as_ref().filter(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollup::testing::{Sample, batch};

    const NOW: i64 = 1_000_000_000_000;
    const NAME: SeriesName<'_> = SeriesName { workspace: "prod", plugin: "github", tool: "list_repos" };

    fn call(trace: &str, duration_ms: f64, at: i64) -> Sample<'_> {
        Sample { trace_id: Some(trace), duration_ms, started_at: at - (duration_ms * 1e3) as i64, ..Sample::default() }
    }

    fn take(exemplars: &mut Exemplars, samples: &[Sample<'_>], now: i64) {
        exemplars.take(Candidates::of(&batch(samples), now), now, 2);
    }

    fn shown(exemplars: &Exemplars, now: i64) -> (Option<&str>, Option<&str>) {
        let (call, error) = exemplars.of(NAME, now);
        (call.map(|call| &*call.trace_id), error.map(|error| &*error.trace_id))
    }

    #[test]
    fn the_slowest_call_of_a_minute_and_the_newest_error_are_kept() {
        let mut exemplars = Exemplars::default();
        let failed = Sample { outcome: "timeout", ..call("c", 5.0, NOW) };
        take(&mut exemplars, &[call("a", 10.0, NOW), call("b", 20.0, NOW), failed], NOW);
        assert_eq!(shown(&exemplars, NOW), (Some("b"), Some("c")));
        take(&mut exemplars, &[call("d", 15.0, NOW + KEPT)], NOW + KEPT);
        assert_eq!(shown(&exemplars, NOW), (Some("b"), Some("c")), "it is slower, and of the same minute");
        take(&mut exemplars, &[call("e", 1.0, NOW + KEPT + 1)], NOW + KEPT + 1);
        assert_eq!(shown(&exemplars, NOW + KEPT + 1).0, Some("e"));
    }

    #[test]
    fn a_denied_call_one_without_a_trace_and_one_long_past_are_none() {
        let mut exemplars = Exemplars::default();
        let denied = Sample { outcome: "policy_denied", ..call("a", 10.0, NOW) };
        let untraced = Sample { trace_id: None, ..call("", 10.0, NOW) };
        take(&mut exemplars, &[denied, untraced, call("b", 1.0, NOW - LIFETIME - 1)], NOW);
        assert_eq!(shown(&exemplars, NOW), (None, None));
        take(&mut exemplars, &[call("c", 1.0, NOW + KEPT)], NOW);
        assert_eq!(exemplars.of(NAME, NOW).0.map(|call| call.at), Some(NOW), "by a clock that is ahead");
    }

    #[test]
    fn series_are_bounded_and_old_ones_make_room() {
        let mut exemplars = Exemplars::default();
        for tool in ["x", "y", "z"] {
            take(&mut exemplars, &[Sample { tool, ..call("a", 1.0, NOW) }], NOW);
        }
        assert_eq!(exemplars.0.len(), 2);
        let later = NOW + LIFETIME + 1;
        take(&mut exemplars, &[call("b", 1.0, later)], later);
        assert_eq!((exemplars.0.len(), shown(&exemplars, later).0), (1, Some("b")));
        assert_eq!(shown(&exemplars, later + LIFETIME + 1).0, None, "it is not shown for ever");
    }
}
