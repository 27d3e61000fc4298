//! What became of the samples: what each connection saw, and the sum of it.

use std::time::Duration;

use serde::Serialize;

/// What became of the samples.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Samples acknowledged.
    pub samples: u64,
    /// Batches acknowledged.
    pub batches: u64,
    /// Of these, batches that the server had already, from an attempt whose answer was lost.
    pub duplicates: u64,
    /// Attempts beyond the first, of all batches.
    pub retries: u64,
    /// Batches never acknowledged.
    pub failed_batches: u64,
    /// The first reason for that.
    pub first_failure: Option<String>,
    /// Seconds from the first sending to the last acknowledgement.
    pub seconds: f64,
    /// Samples acknowledged a second.
    pub samples_per_second: f64,
    /// Median time until a batch was acknowledged, ms.
    pub ack_p50_ms: f64,
    /// Its 99th percentile.
    pub ack_p99_ms: f64,
    /// Its maximum.
    pub ack_max_ms: f64,
}

/// What one connection saw.
#[derive(Default)]
pub(super) struct Tally {
    report: Report,
    latencies: Vec<Duration>,
}

impl Tally {
    pub(super) fn acknowledged(&mut self, samples: usize, duplicate: bool, retries: u32, latency: Duration) {
        self.report.samples += samples as u64;
        self.report.batches += 1;
        self.report.duplicates += u64::from(duplicate);
        self.report.retries += u64::from(retries);
        self.latencies.push(latency);
    }

    pub(super) fn fail(&mut self, reason: String) {
        self.report.failed_batches += 1;
        self.report.first_failure.get_or_insert(reason);
    }

    pub(super) fn add(&mut self, other: Self) {
        let Self { report, latencies } = other;
        self.report.samples += report.samples;
        self.report.batches += report.batches;
        self.report.duplicates += report.duplicates;
        self.report.retries += report.retries;
        self.report.failed_batches += report.failed_batches;
        self.report.first_failure = self.report.first_failure.take().or(report.first_failure);
        self.latencies.extend(latencies);
    }

    pub(super) fn report(mut self, elapsed: Duration) -> Report {
        self.latencies.sort_unstable();
        let quantile = |q: f64| {
            // The smallest latency that at least a share q of them does not exceed.
            let rank = (q * self.latencies.len() as f64).ceil() as usize;
            self.latencies.get(rank.saturating_sub(1)).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        let seconds = elapsed.as_secs_f64();
        Report {
            seconds,
            samples_per_second: self.report.samples as f64 / seconds.max(f64::MIN_POSITIVE),
            ack_p50_ms: quantile(0.5),
            ack_p99_ms: quantile(0.99),
            ack_max_ms: quantile(1.0),
            ..self.report
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "acknowledged  {} samples in {} batches, {:.1} s", self.samples, self.batches, self.seconds)?;
        writeln!(f, "rate          {:.0} samples/s", self.samples_per_second)?;
        writeln!(
            f,
            "ack latency   p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            self.ack_p50_ms, self.ack_p99_ms, self.ack_max_ms
        )?;
        write!(
            f,
            "retries       {}, duplicates {}, failed batches {}",
            self.retries, self.duplicates, self.failed_batches
        )?;
        match &self.first_failure {
            Some(reason) => write!(f, "\nfirst failure {reason}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Tally;

    #[test]
    fn quantiles_are_by_rank() {
        let mut tally = Tally::default();
        for ms in (1..=200).rev() {
            tally.acknowledged(1, false, 0, Duration::from_millis(ms));
        }
        let report = tally.report(Duration::from_secs(2));
        assert_eq!((report.ack_p50_ms, report.ack_p99_ms, report.ack_max_ms), (100.0, 198.0, 200.0));
        assert_eq!(report.samples_per_second, 100.0);
    }
}
