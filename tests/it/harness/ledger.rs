//! What was acknowledged, and what must therefore be there: exactly once, in every view of the data.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Client;

/// The batches that a loader sent, by their idempotency key, which each sample also carries as its `request_id`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    /// Samples in each acknowledged batch.
    pub(crate) acknowledged: BTreeMap<String, u64>,
    /// Samples in each batch that was sent, got no answer, or one that promises nothing, and was given up: stored
    /// wholly or not at all.
    pub(crate) unknown: BTreeMap<String, u64>,
    /// How often 429 or 503 was answered.
    pub(crate) refused: u64,
}

/// A series and its calls, errors and denials.
type Counts = BTreeMap<Vec<String>, [i64; 3]>;

impl Ledger {
    /// Takes in what another loader did.
    pub(crate) fn merge(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.unknown.extend(other.unknown);
        self.refused += other.refused;
    }

    /// Samples acknowledged.
    pub(crate) fn samples(&self) -> i64 {
        i64::try_from(self.acknowledged.values().sum::<u64>()).unwrap()
    }

    /// Asserts that each acknowledged batch is stored exactly once, each unknown one wholly or not at all, nothing else
    /// is there, and that both rollups and the counters say the same as the samples.
    pub(crate) async fn assert_kept(&self, client: &Client) {
        let by_batch =
            "SELECT request_id, count(*), count(DISTINCT invocation_id) FROM tool_invocations GROUP BY request_id";
        let mut stored = BTreeMap::new();
        for row in client.sql_once_loaded(by_batch).await {
            assert_eq!(row[1], row[2], "stored twice within batch {}", row[0]);
            stored.insert(row[0].as_str().unwrap().to_owned(), row[1].as_u64().unwrap());
        }
        for (key, rows) in &self.acknowledged {
            let found = stored.remove(key).unwrap_or(0);
            assert_eq!(found, *rows, "samples stored of the acknowledged batch {key}");
        }
        for (key, rows) in &self.unknown {
            let found = stored.remove(key).unwrap_or(0);
            assert!(found == 0 || found == *rows, "batch {key} of {rows} samples is stored in part: {found}");
        }
        assert!(stored.is_empty(), "samples that nobody sent: {stored:?}");
        assert_views_agree(client).await;
    }
}

/// Asserts that the samples, both rollups and the counters of a quiet control plane say the same.
pub(crate) async fn assert_views_agree(client: &Client) {
    let samples = counts(
        client,
        "SELECT workspace, plugin, tool, count(*),
                count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout')),
                count(*) FILTER (WHERE outcome IN ('policy_denied', 'quota_exceeded'))
         FROM tool_invocations GROUP BY workspace, plugin, tool",
    )
    .await;
    for table in ["tool_usage_hourly", "tool_usage_daily"] {
        let rollup = format!(
            "SELECT workspace, plugin, tool, sum(calls), sum(errors), sum(denials) FROM {table} GROUP BY workspace, plugin, tool"
        );
        assert_eq!(counts(client, &rollup).await, samples, "{table} and tool_invocations");
    }
    let windows =
        "SELECT date_trunc('hour', started_at) AS w, plugin, tool, count(*) FROM tool_invocations GROUP BY 1, 2, 3";
    let hours = "SELECT window_start AS w, plugin, tool, sum(calls) FROM tool_usage_hourly GROUP BY 1, 2, 3";
    assert_eq!(
        client.sql_once_loaded(&format!("{hours} ORDER BY 1, 2, 3")).await,
        client.sql_once_loaded(&format!("{windows} ORDER BY 1, 2, 3")).await,
        "the hours of tool_usage_hourly and of tool_invocations"
    );
    let scrape = client.metrics_once_loaded().await;
    let family = |name: &str| scrape.sum_by(name, &["workspace", "plugin", "tool"]);
    let (calls, errors, denials) =
        (family("mcpg_tool_calls_total"), family("mcpg_tool_errors_total"), family("mcpg_tool_denials_total"));
    let count =
        |family: &BTreeMap<Vec<String>, f64>, series: &Vec<String>| family.get(series).copied().unwrap_or(0.0) as i64;
    let scraped: Counts = calls
        .keys()
        .map(|series| (series.clone(), [count(&calls, series), count(&errors, series), count(&denials, series)]))
        .collect();
    assert_eq!(scraped, samples, "the scrape and tool_invocations");
    // A call that was denied ran nothing, and has no latency.
    let counted = family("mcpg_tool_duration_seconds_count");
    let ran: BTreeMap<_, _> =
        calls.keys().map(|series| (series, count(&calls, series) - count(&denials, series))).collect();
    let timed: BTreeMap<_, _> = calls.keys().map(|series| (series, count(&counted, series))).collect();
    assert_eq!(timed, ran, "the histogram's counts and the calls that were dispatched");
}

async fn counts(client: &Client, query: &str) -> Counts {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let number = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("no whole number: {value}"));
    let rows = client.sql_once_loaded(query).await;
    let entry =
        |row: &Vec<Value>| (row[..3].iter().map(text).collect(), [number(&row[3]), number(&row[4]), number(&row[5])]);
    rows.iter().map(entry).collect()
}
