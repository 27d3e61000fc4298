//! Calls by plugin and tool.
//!
//! A client may name tools that do not exist, so the number of series is bounded: past [`MAX_TOOLS`], calls of tools
//! not seen before are counted under `plugin="__other__"`, `tool="__other__"`, and a counter says how many.

use std::hash::{Hash, Hasher};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use hashbrown::{Equivalent, HashMap};
use prometheus::{IntCounter, IntCounterVec};

use super::make::Maker;
use super::timer::{Timer, TimerVec};
use crate::model::Outcome;

/// The most tools that have series of their own.
pub const MAX_TOOLS: usize = 2_000;

/// What plugin and tool are called past the bound.
const OTHER: &str = "__other__";

/// The bounds of the control plane's duration buckets, as powers of two of a second: 4 ms to 64 s.
const BOUNDS: [f64; 10] = [0.003_906_25, 0.015_625, 0.062_5, 0.125, 0.25, 0.5, 1.0, 4.0, 16.0, 64.0];

const LABELS: [&str; 2] = ["plugin", "tool"];

/// Calls by plugin and tool.
#[derive(Debug)]
pub struct Calls {
    tools: RwLock<HashMap<Tool, Series>>,
    calls: IntCounterVec,
    errors: IntCounterVec,
    denials: IntCounterVec,
    durations: TimerVec,
    overflowed: IntCounter,
}

/// One tool's series.
#[derive(Debug, Clone)]
struct Series {
    calls: IntCounter,
    errors: IntCounter,
    denials: IntCounter,
    duration: Timer,
}

impl Series {
    fn count(&self, outcome: Outcome, took: Duration) {
        self.calls.inc();
        if outcome.is_error() {
            self.errors.inc();
        }
        if outcome.is_denial() {
            self.denials.inc();
        }
        self.duration.observe(took);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Tool {
    plugin: Box<str>,
    name: Box<str>,
}

impl Hash for Tool {
    fn hash<H: Hasher>(&self, state: &mut H) {
        ToolRef(&self.plugin, &self.name).hash(state);
    }
}

#[derive(Hash)]
struct ToolRef<'a>(&'a str, &'a str);

impl Equivalent<Tool> for ToolRef<'_> {
    fn equivalent(&self, tool: &Tool) -> bool {
        *self.0 == *tool.plugin && *self.1 == *tool.name
    }
}

impl Calls {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            tools: RwLock::default(),
            calls: make.counters("mcpg_tool_calls_total", "Total tool invocations", &LABELS),
            errors: make.counters("mcpg_tool_errors_total", "Total tool errors", &LABELS),
            denials: make.counters(
                "mcpg_tool_denials_total",
                "Total tool invocations denied by policy or quota",
                &LABELS,
            ),
            durations: make.timers("mcpg_tool_duration_seconds", "Tool call durations", &LABELS, &BOUNDS),
            overflowed: make.counter(
                "mcpg_gateway_series_overflowed_total",
                "Calls counted under __other__ because there are too many tools",
            ),
        }
    }

    /// A call ended.
    pub fn ended(&self, plugin: &str, tool: &str, outcome: Outcome, took: Duration) {
        let key = ToolRef(plugin, tool);
        if let Some(series) = self.tools.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return series.count(outcome, took);
        }
        self.series(plugin, tool).count(outcome, took);
    }

    /// The series of a tool, made if there is room for it.
    fn series(&self, plugin: &str, tool: &str) -> Series {
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = tools.get(&ToolRef(plugin, tool)) {
            return series.clone();
        }
        if tools.len() >= MAX_TOOLS {
            self.overflowed.inc();
            return self.made(OTHER, OTHER);
        }
        let series = self.made(plugin, tool);
        tools.insert(Tool { plugin: plugin.into(), name: tool.into() }, series.clone());
        series
    }

    fn made(&self, plugin: &str, tool: &str) -> Series {
        let values = [plugin, tool];
        Series {
            calls: self.calls.with_label_values(&values),
            errors: self.errors.with_label_values(&values),
            denials: self.denials.with_label_values(&values),
            duration: self.durations.with(&values),
        }
    }
}
