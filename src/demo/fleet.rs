//! The fleet: gateways, and the samples each would have sent for a stretch of time.
//!
//! Latencies are lognormal, and one call in a hundred falls into a Pareto tail (α = 1.5) up to the timeout of 30 s, so
//! that a mean says little and p99 is many times p50, as with real tools. Error episodes are functions of the seed and
//! of the time, not of the calls made: all gateways see the same tool fail at the same time, in any order of calls.

use std::f64::consts::TAU;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int64Builder, StringArray, StringBuilder, TimestampMicrosecondArray, new_null_array,
};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use uuid::{Builder, Uuid};

use super::catalog::{CALLERS, ERROR_TEXTS, TOOLS, Tool};
use super::template::DemoError;
use crate::ingest::emitted_schema;
use crate::model::{Decision, Outcome, micros};

/// Where gateways give up on an upstream, ms.
const TIMEOUT_MS: f64 = 30_000.0;
/// Share of calls in the tail, and the tail's exponent.
const TAIL_SHARE: f64 = 0.01;
const TAIL_ALPHA: f64 = 1.5;
/// Length of an error episode, µs.
const EPISODE_MICROS: i64 = 300_000_000;
/// One tool in so many is in an episode at any time.
const EPISODE_ODDS: u64 = 40;
/// Entries of the tables that tools and callers are drawn from: a power of two.
const DRAW_SLOTS: usize = 1024;

/// One gateway of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gateway {
    workspace: String,
    instance: String,
}

/// The fleet.
#[derive(Debug)]
pub struct Fleet {
    seed: u64,
    rng: SmallRng,
    gateways: Vec<Gateway>,
    tool_draw: Vec<usize>,
    caller_draw: Vec<usize>,
    sessions: Vec<String>,
    error_hashes: Vec<(&'static str, String)>,
}

impl Fleet {
    /// A fleet of some gateways, of which two of three are in the workspace `prod`; the same seed makes the same fleet.
    pub fn new(seed: u64, gateways: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let gateways = (1..=gateways.max(1))
            .map(|number| Gateway {
                workspace: if number % 3 == 0 { "staging" } else { "prod" }.to_owned(),
                instance: format!("gw-{number}"),
            })
            .collect();
        // Callers by Zipf's law: the second calls half as often as the first, the third a third.
        let caller_weights: Vec<f64> = (1..=CALLERS.len()).map(|rank| 1.0 / rank as f64).collect();
        let tool_weights: Vec<f64> = TOOLS.iter().map(|tool| f64::from(tool.weight)).collect();
        let sessions = CALLERS.iter().map(|_| new_session(&mut rng)).collect();
        Self {
            seed,
            gateways,
            tool_draw: draw_table(&tool_weights),
            caller_draw: draw_table(&caller_weights),
            sessions,
            error_hashes: ERROR_TEXTS
                .iter()
                .map(|(code, text)| (*code, blake3::hash(text.as_bytes()).to_hex().to_string()))
                .collect(),
            rng,
        }
    }

    /// Samples that a gateway took between two times, in their order, in the schema of [`emitted_schema`].
    ///
    /// # Errors
    /// [`DemoError`] when the schema has a column that is not known here.
    pub fn batch(
        &mut self,
        gateway: usize,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        rows: usize,
    ) -> Result<RecordBatch, DemoError> {
        let (start, span) = (micros(from), (micros(to) - micros(from)).max(0));
        let gateway = self.gateways.get(gateway % self.gateways.len().max(1)).cloned();
        let Gateway { workspace, instance } =
            gateway.unwrap_or(Gateway { workspace: String::new(), instance: String::new() });
        let mut columns = Columns::with_capacity(rows);
        for row in 0..rows {
            let place = (row as f64 + self.rng.random::<f64>()) / rows as f64;
            let started_at = start + (place * span as f64) as i64;
            self.call(started_at, &mut columns);
        }
        columns.finish(&workspace, &instance)
    }

    /// One call, into the columns.
    fn call(&mut self, started_at: i64, columns: &mut Columns) {
        let draw = self.rng.next_u64();
        let slot = |shift: u32| (draw >> shift) as usize % DRAW_SLOTS;
        let (Some(&which), Some(&caller)) = (self.tool_draw.get(slot(0)), self.caller_draw.get(slot(10))) else {
            return;
        };
        let Some(tool) = TOOLS.get(which) else { return };
        let in_episode = self.in_episode(which, started_at);
        let (normal_a, normal_b) = self.normals();
        let (normal_c, normal_d) = self.normals();
        let mut latency = tool.median_ms * (tool.sigma * normal_a).exp();
        if in_episode {
            latency *= 3.0;
        }
        if self.rng.random::<f64>() < TAIL_SHARE {
            latency *= (1.0 - self.rng.random::<f64>()).powf(-1.0 / TAIL_ALPHA) * 4.0;
        }
        let outcome = self.outcome(tool, caller, in_episode, latency);
        let denied = outcome.is_denial();
        let duration = match outcome {
            Outcome::Timeout => TIMEOUT_MS + normal_b.abs(),
            Outcome::PolicyDenied | Outcome::QuotaExceeded => 0.15 + 0.05 * normal_b.abs(),
            Outcome::ClientError => latency * 0.3,
            _ => latency,
        };
        let (error_code, error_hash) = match outcome {
            Outcome::Ok => (None, None),
            Outcome::ClientError => (Some("INVALID_ARGUMENTS"), None),
            Outcome::Timeout => (Some("UPSTREAM_TIMEOUT"), None),
            Outcome::PolicyDenied => (Some("POLICY_DENIED"), None),
            Outcome::QuotaExceeded => (Some("QUOTA_EXCEEDED"), None),
            Outcome::ServerError => self
                .error_hashes
                .get(slot(20) % self.error_hashes.len().max(1))
                .map_or((None, None), |(code, hash)| (Some(*code), Some(hash.as_str()))),
        };
        let decision = match outcome {
            Outcome::PolicyDenied => Decision::Deny,
            _ if tool.writes && slot(30) % 4 == 0 => Decision::PermitWithObligations,
            _ => Decision::Permit,
        };
        columns.started_at.push(started_at);
        columns.arrived_at.push(started_at - 120 - (400.0 * normal_b.abs()) as i64);
        columns.duration_ms.push((duration * 1000.0).round() / 1000.0);
        columns.plugin.append_value(tool.plugin);
        columns.tool.append_value(tool.name);
        columns.outcome.append_value(outcome.as_str());
        columns.error_code.append_option(error_code);
        columns.error_hash.append_option(error_hash);
        columns.caller.append_option(CALLERS.get(caller));
        columns.decision.append_value(decision.as_str());
        columns.request_bytes.append_value((380.0 * (0.8 * normal_c).exp()) as i64);
        columns.response_bytes.append_option((!denied).then(|| (tool.response_bytes * (0.9 * normal_d).exp()) as i64));
        self.ids(started_at, caller, columns);
    }

    fn ids(&mut self, started_at: i64, caller: usize, columns: &mut Columns) {
        let mut random = [0; 10];
        self.rng.fill_bytes(&mut random);
        let millis = u64::try_from(started_at.div_euclid(1000)).unwrap_or(0);
        let mut hyphenated = Uuid::encode_buffer();
        let id = Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        columns.invocation_id.append_value(id.hyphenated().encode_lower(&mut hyphenated));
        let mut hex = Uuid::encode_buffer();
        let trace = Uuid::from_u64_pair(self.rng.next_u64() | 1, self.rng.next_u64());
        columns.trace_id.append_value(trace.simple().encode_lower(&mut hex));
        let others = Uuid::from_u64_pair(self.rng.next_u64() | 1, self.rng.next_u64());
        let (span, request) = others.simple().encode_lower(&mut hex).split_at(16);
        columns.span_id.append_value(span);
        columns.request_id.append_value(request);
        if let Some(session) = self.sessions.get_mut(caller) {
            // A session lasts some two hundred calls.
            if random.first().is_some_and(|&byte| byte == 0) {
                *session = new_session(&mut self.rng);
            }
            columns.session_id.append_value(session);
        } else {
            columns.session_id.append_null();
        }
    }

    fn outcome(&mut self, tool: &Tool, caller: usize, in_episode: bool, latency: f64) -> Outcome {
        let chance = self.rng.random::<f64>();
        let denied = match (tool.writes, CALLERS.get(caller)) {
            (true, Some(&"anonymous")) => 0.6,
            (true, _) => 0.02,
            (false, _) => 0.004,
        };
        if chance < denied {
            return if chance < denied * 0.8 { Outcome::PolicyDenied } else { Outcome::QuotaExceeded };
        }
        if latency >= TIMEOUT_MS {
            return Outcome::Timeout;
        }
        let error_rate = if in_episode { 0.35 } else { tool.error_rate };
        let chance = self.rng.random::<f64>();
        if chance >= error_rate {
            Outcome::Ok
        } else if chance < error_rate * 0.7 {
            Outcome::ServerError
        } else {
            Outcome::ClientError
        }
    }

    /// Whether a tool, by its place in the catalog, is having a bad time.
    fn in_episode(&self, tool: usize, at: i64) -> bool {
        self.chance(tool as u64, at.div_euclid(EPISODE_MICROS)).is_multiple_of(EPISODE_ODDS)
    }

    /// A number that follows from the seed, a subject and a time alone (SplitMix64's mixing function).
    fn chance(&self, subject: u64, time: i64) -> u64 {
        let mut mixed = self.seed ^ subject.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ time.cast_unsigned().rotate_left(32);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Two independent standard normal numbers (Box and Muller, 1958).
    fn normals(&mut self) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - self.rng.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (TAU * self.rng.random::<f64>()).sin_cos();
        (radius * cos, radius * sin)
    }
}

fn new_session(rng: &mut SmallRng) -> String {
    format!("s-{:016x}", rng.next_u64())
}

/// Indices, each as often in the table as its weight has it: drawing one is looking up a random slot.
fn draw_table(weights: &[f64]) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let mut table = Vec::with_capacity(DRAW_SLOTS);
    let mut reached = 0.0;
    for (index, weight) in weights.iter().enumerate() {
        reached += weight;
        let filled = (reached / total * DRAW_SLOTS as f64).round() as usize;
        table.resize(filled.max(table.len()), index);
    }
    table.resize(DRAW_SLOTS, 0);
    table
}

/// The columns of a batch in the making.
struct Columns {
    invocation_id: StringBuilder,
    plugin: StringBuilder,
    tool: StringBuilder,
    started_at: Vec<i64>,
    arrived_at: Vec<i64>,
    duration_ms: Vec<f64>,
    outcome: StringBuilder,
    error_code: StringBuilder,
    error_hash: StringBuilder,
    request_id: StringBuilder,
    session_id: StringBuilder,
    trace_id: StringBuilder,
    span_id: StringBuilder,
    caller: StringBuilder,
    decision: StringBuilder,
    request_bytes: Int64Builder,
    response_bytes: Int64Builder,
}

impl Columns {
    fn with_capacity(rows: usize) -> Self {
        let text = |len: usize| StringBuilder::with_capacity(rows, rows * len);
        Self {
            invocation_id: text(36),
            plugin: text(8),
            tool: text(14),
            started_at: Vec::with_capacity(rows),
            arrived_at: Vec::with_capacity(rows),
            duration_ms: Vec::with_capacity(rows),
            outcome: text(6),
            error_code: text(2),
            error_hash: text(2),
            request_id: text(16),
            session_id: text(18),
            trace_id: text(32),
            span_id: text(16),
            caller: text(18),
            decision: text(8),
            request_bytes: Int64Builder::with_capacity(rows),
            response_bytes: Int64Builder::with_capacity(rows),
        }
    }

    fn finish(mut self, workspace: &str, instance: &str) -> Result<RecordBatch, DemoError> {
        let rows = self.started_at.len();
        let schema = emitted_schema()?;
        let times = |times| Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"));
        let (started_at, arrived_at) = (times(self.started_at), times(self.arrived_at));
        let duration_ms = Arc::new(Float64Array::from(self.duration_ms));
        let columns = schema
            .fields()
            .iter()
            .map(|field| -> ArrayRef {
                match field.name().as_str() {
                    "invocation_id" => Arc::new(self.invocation_id.finish()),
                    "workspace" => Arc::new(StringArray::new_repeated(workspace, rows)),
                    "instance" => Arc::new(StringArray::new_repeated(instance, rows)),
                    "plugin" => Arc::new(self.plugin.finish()),
                    "tool" => Arc::new(self.tool.finish()),
                    "started_at" => Arc::clone(&started_at) as ArrayRef,
                    "arrived_at" => Arc::clone(&arrived_at) as ArrayRef,
                    "duration_ms" => Arc::clone(&duration_ms) as ArrayRef,
                    "outcome" => Arc::new(self.outcome.finish()),
                    "error_code" => Arc::new(self.error_code.finish()),
                    "error_hash" => Arc::new(self.error_hash.finish()),
                    "request_id" => Arc::new(self.request_id.finish()),
                    "session_id" => Arc::new(self.session_id.finish()),
                    "trace_id" => Arc::new(self.trace_id.finish()),
                    "span_id" => Arc::new(self.span_id.finish()),
                    "caller" => Arc::new(self.caller.finish()),
                    "decision" => Arc::new(self.decision.finish()),
                    "request_bytes" => Arc::new(self.request_bytes.finish()),
                    "response_bytes" => Arc::new(self.response_bytes.finish()),
                    _ => new_null_array(field.data_type(), rows),
                }
            })
            .collect();
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Float64Array};
    use arrow::datatypes::TimestampMicrosecondType;
    use arrow::record_batch::RecordBatch;
    use chrono::{DateTime, TimeDelta, Utc};

    use super::super::catalog::TOOLS;
    use super::{Fleet, draw_table};
    use crate::ingest::{DecodeContext, DecodeLimits, Encoding, Media, RandomIds, decode, emitted_schema};
    use crate::model::Outcome;

    fn start() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn an_hour(rows: usize) -> RecordBatch {
        Fleet::new(1, 3).batch(0, start(), start() + TimeDelta::hours(1), rows).unwrap()
    }

    #[test]
    fn a_seed_makes_one_fleet_and_another_seed_another() {
        let batch = |seed| Fleet::new(seed, 3).batch(0, start(), start() + TimeDelta::minutes(1), 100).unwrap();
        assert_eq!(batch(1), batch(1));
        assert_ne!(batch(1), batch(2));
    }

    #[test]
    fn samples_lie_in_their_stretch_of_time_in_order() {
        let batch = an_hour(500);
        assert_eq!(batch.schema(), emitted_schema().unwrap());
        let times = batch.column_by_name("started_at").unwrap().as_primitive::<TimestampMicrosecondType>().clone();
        assert!(times.values().is_sorted());
        assert!(times.value(0) >= start().timestamp_micros());
        assert!(times.value(499) < start().timestamp_micros() + 3_600_000_000);
    }

    #[test]
    fn every_sample_passes_validation() {
        let body = super::super::Template::new(Media::ArrowStream, an_hour(5000)).unwrap();
        let body = body.render(start(), TimeDelta::zero(), &mut rand::rng()).unwrap();
        let org = "acme".parse().unwrap();
        let now = start() + TimeDelta::hours(1);
        let context = DecodeContext { org: &org, now, limits: DecodeLimits::default() };
        let decoded = decode(&body.bytes, Media::ArrowStream, Encoding::Identity, &context, &mut RandomIds::default());
        assert_eq!(decoded.unwrap().num_rows(), 5000);
    }

    #[test]
    fn latencies_have_a_heavy_tail() {
        let batch = an_hour(20_000);
        let durations: &Float64Array = batch.column_by_name("duration_ms").unwrap().as_primitive();
        let mut sorted = durations.values().to_vec();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted[19_800] > 10.0 * sorted[10_000], "p99 {} p50 {}", sorted[19_800], sorted[10_000]);
    }

    #[test]
    fn every_outcome_and_nearly_every_tool_occurs_within_an_hour() {
        let batch = an_hour(50_000);
        let outcomes = batch.column_by_name("outcome").unwrap().as_string::<i32>();
        for outcome in Outcome::ALL {
            assert!(outcomes.iter().flatten().any(|word| word == outcome.as_str()), "{outcome:?}");
        }
        let tools = batch.column_by_name("tool").unwrap().as_string::<i32>();
        let called = TOOLS.iter().filter(|tool| tools.iter().flatten().any(|name| name == tool.name)).count();
        assert!(called + 2 >= TOOLS.len(), "{called} of {}", TOOLS.len());
    }

    #[test]
    fn a_tool_in_an_episode_fails_far_more_often() {
        let fleet = Fleet::new(1, 3);
        let five_minutes = 300_000_000;
        let bad = (0..).find(|slot| fleet.in_episode(0, slot * five_minutes)).unwrap();
        let mut fleet = Fleet::new(1, 3);
        let from = DateTime::from_timestamp_micros(bad * five_minutes).unwrap();
        let batch = fleet.batch(0, from, from + TimeDelta::minutes(5), 50_000).unwrap();
        let tools = batch.column_by_name("tool").unwrap().as_string::<i32>();
        let outcomes = batch.column_by_name("outcome").unwrap().as_string::<i32>();
        let of_tool = || (0..batch.num_rows()).filter(|&row| tools.value(row) == TOOLS[0].name);
        let failed = of_tool().filter(|&row| Outcome::parse(outcomes.value(row)).unwrap().is_error()).count();
        assert!(failed * 4 > of_tool().count(), "{failed} of {}", of_tool().count());
    }

    #[test]
    fn a_draw_table_follows_its_weights() {
        let table = draw_table(&[3.0, 1.0]);
        assert_eq!(table.iter().filter(|&&index| index == 0).count(), 768);
        assert_eq!(table.len(), 1024);
    }
}
