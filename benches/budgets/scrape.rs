//! What a scrape takes, by the number of series and of samples behind them, in text and in protobuf.
//!
//! Timed from outside: from sending the request on a kept-alive connection until the last byte has come. Every answer's
//! size is checked against the number of series, and the counters' sum against the samples sent, so that what is timed
//! is the whole truth.

use std::collections::HashMap;
use std::sync::Arc;

use mcpg::demo::Template;
use mcpg::ingest::Media;
use mcpg::model::{Clock, SystemClock};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Result;
use super::figures::{mib, ms, quantile, readable};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::samples::{ARROW, of_series};
use super::server::{Home, Server};

const SERIES: [usize; 3] = [100, 1_000, 10_000];
/// Samples of a long history, and of a short one; every series has one sample at least.
const LONG: u64 = 10_000_000;
const SHORT: u64 = 1_000;
/// Samples of a body: a multiple of every number of series.
const BODY_ROWS: usize = 20_000;
const SENDERS: usize = 4;
/// Timed scrapes, after some that are not.
const SCRAPES: u64 = 200;
const WARM_UP: u64 = 5;
/// For 10,000 series, whatever the history.
const LIMIT_MS: f64 = 20.0;
/// Prometheus' media type of the protobuf format.
const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
/// The forms of an answer: name, what is asked for, what the answer's type starts with.
const FORMATS: [(&str, &str, &str); 2] =
    [("text", "text/plain;version=0.0.4", "text/plain"), ("protobuf", PROTOBUF, "application/vnd.google.protobuf")];

/// Measures it.
///
/// # Errors
/// When the server does not start, or an answer is not whole.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let org = |series| format!("s{series}");
    let orgs = SERIES.map(|series| format!("{{ name: {} }}", org(series))).join(", ");
    let home = Home::new(&format!("orgs: [{orgs}]"))?;
    let server = Arc::new(home.start().await?);
    let mut findings = Vec::new();
    for series in SERIES {
        let org = Org { server: Arc::clone(&server), name: org(series), series };
        let mut p50_before = HashMap::new();
        let mut sent = 0;
        for goal in [SHORT.max(series as u64), options.count(LONG).max(series as u64)] {
            say(&format!("scrape: {series} series, {goal} samples"));
            sent += org.fill(goal - sent).await?;
            server.flushed().await?;
            let calls = org.calls().await?;
            if calls != sent as f64 {
                return Err(format!("{sent} samples were acknowledged and the counters say {calls}").into());
            }
            for (format, accept, content_type) in FORMATS {
                let scrapes = org.scrape(options.count(SCRAPES), accept, content_type).await?;
                let p50 = quantile(&scrapes.times, 0.5);
                let mut note = format!(
                    "p50 {} ms; {} MiB; {} ms of it making the answer",
                    readable(p50),
                    readable(mib(scrapes.bytes)),
                    readable(scrapes.rendering)
                );
                if let Some(before) = p50_before.insert(format, p50) {
                    note.push_str(&format!("; p50 is {} times that with the short history", readable(p50 / before)));
                }
                let what = format!("scrape, {} series, {} samples, {format}, p99", thousands(series), thousands(sent));
                let detail = json!({ "series": series, "samples": sent, "format": format, "bytes": scrapes.bytes, "ms": scrapes.times });
                let finding =
                    Finding::new("scrape", what, quantile(&scrapes.times, 0.99), "ms").note(note).detail(detail);
                findings.push(if series == 10_000 { finding.budget(Budget::AtMost(LIMIT_MS)) } else { finding });
            }
        }
    }
    Ok(findings)
}

fn thousands(count: impl TryInto<u64>) -> String {
    readable(count.try_into().unwrap_or_default() as f64)
}

/// One org of the server, with its number of series.
struct Org {
    server: Arc<Server>,
    name: String,
    series: usize,
}

/// Scrapes of one kind.
struct Scrapes {
    /// Each one's time, ms.
    times: Vec<f64>,
    /// Bytes of one answer.
    bytes: u64,
    /// Mean time that the server says it took to make an answer, ms.
    rendering: f64,
}

impl Org {
    /// Sends `samples` more samples, evenly over all series; gives the number sent, in whole rounds of the series.
    async fn fill(&self, samples: u64) -> Result<u64> {
        let now = SystemClock.now();
        let rows = BODY_ROWS.min((samples as usize).next_multiple_of(self.series));
        let bodies = samples.div_ceil(rows as u64);
        let template = Arc::new(Template::new(Media::ArrowStream, of_series(now, rows, self.series)?)?);
        let mut senders = JoinSet::new();
        for first in 0..SENDERS as u64 {
            let (server, org, template) = (Arc::clone(&self.server), self.name.clone(), Arc::clone(&template));
            senders.spawn(async move {
                for number in (first..bodies).step_by(SENDERS) {
                    let at = SystemClock.now();
                    let body = template.render(at, at - now, &mut rand::rng())?;
                    server.post(&org, ARROW, &body.first_id.to_string(), body.bytes).await?;
                    if number % 100 == 99 {
                        say(&format!("… {} of {samples} samples", (number + 1) * rows as u64));
                    }
                }
                Ok::<_, super::Error>(())
            });
        }
        while let Some(sent) = senders.join_next().await {
            sent??;
        }
        Ok(bodies * rows as u64)
    }

    fn url(&self) -> String {
        format!("{}/v1/orgs/{}/metrics?granularity=hour", self.server.url(), self.name)
    }

    /// The sum of the call counters; fails unless each series has one.
    async fn calls(&self) -> Result<f64> {
        let text = self.server.http().get(self.url()).send().await?.error_for_status()?.text().await?;
        let counters = text.lines().filter(|line| line.starts_with("mcpg_tool_calls_total{"));
        let values = counters.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        let values: Vec<f64> = values.collect();
        if values.len() == self.series {
            Ok(values.iter().sum())
        } else {
            Err(format!("{} series are there instead of {}", values.len(), self.series).into())
        }
    }

    async fn scrape(&self, scrapes: u64, accept: &str, content_type: &str) -> Result<Scrapes> {
        let mut times = Vec::new();
        let (mut bytes, mut before) = (0, (0.0, 0.0));
        for number in 0..WARM_UP + scrapes {
            if number == WARM_UP {
                before = self.rendering().await?;
            }
            let began = Instant::now();
            let mut answer =
                self.server.http().get(self.url()).header(ACCEPT, accept).send().await?.error_for_status()?;
            bytes = 0;
            while let Some(chunk) = answer.chunk().await? {
                bytes += chunk.len() as u64;
            }
            let took = began.elapsed();
            let got = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            if !got.starts_with(content_type) || bytes < self.series as u64 {
                return Err(format!("asked for {accept}, got {bytes} bytes of {got}").into());
            }
            if number >= WARM_UP {
                times.push(ms(took));
            }
        }
        let after = self.rendering().await?;
        let rendering = 1e3 * (after.0 - before.0) / (after.1 - before.1);
        Ok(Scrapes { times, bytes, rendering })
    }

    /// Seconds that the server took for making answers so far, and their number.
    async fn rendering(&self) -> Result<(f64, f64)> {
        let sum = self.server.metric("mcpg_cp_scrape_duration_seconds_sum").await?;
        Ok((sum, self.server.metric("mcpg_cp_scrape_duration_seconds_count").await?))
    }
}
