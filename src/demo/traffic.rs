//! A fleet at work: each gateway sends what it took, once a second, until told to stop.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::fleet::Fleet;
use super::sender::{Refusal, Sender};
use super::template::{DemoError, Template};
use crate::model::Clock;

/// How often a gateway sends.
const TICK: Duration = Duration::from_secs(1);
/// The longest stretch that one body of the past covers, and about how many samples one holds at most on average.
const BACKFILL_SLICE: Duration = Duration::from_secs(300);
const BACKFILL_ROWS: f64 = 10_000.0;

/// Why traffic ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// Samples could not be made.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// The control plane does not want them.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Sends the fleet's past: from `since` until `until`, at `mean_rate` samples a second of all gateways together. Gives the number of samples.
///
/// # Errors
/// See [`TrafficError`].
pub async fn backfill(
    fleet: &mut Fleet,
    sender: &Sender,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    mean_rate: f64,
) -> Result<usize, TrafficError> {
    let mut rng = SmallRng::seed_from_u64(since.timestamp_micros().cast_unsigned());
    let gateway_rate = (mean_rate / fleet.gateways().len().max(1) as f64).max(f64::MIN_POSITIVE);
    let slice = BACKFILL_SLICE.as_secs_f64().min(BACKFILL_ROWS / gateway_rate).max(1e-3);
    let slice = TimeDelta::microseconds((slice * 1e6) as i64);
    let mut sent = 0;
    let mut from = since;
    while from < until {
        let to = (from + slice).min(until);
        for gateway in 0..fleet.gateways().len() {
            let rows = rows(fleet, from, to, mean_rate, &mut rng);
            sent += send(fleet, sender, gateway, from, to, rows, &mut rng).await?;
        }
        from = to;
    }
    Ok(sent)
}

/// Sends the fleet's present at `mean_rate` samples a second of all gateways together, until `stop`.
///
/// A control plane that is away for a while is waited for, as long as the sender's patience lasts; what could not be delivered is
/// lost with a warning, since a simulated gateway has no spool.
///
/// # Errors
/// [`TrafficError`] when samples cannot be made or are refused for good.
pub async fn simulate(
    mut fleet: Fleet,
    sender: Sender,
    clock: Arc<dyn Clock>,
    mean_rate: f64,
    stop: CancellationToken,
) -> Result<(), TrafficError> {
    let mut rng = SmallRng::seed_from_u64(clock.now().timestamp_micros().cast_unsigned());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut from = clock.now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let to = clock.now();
        for gateway in 0..fleet.gateways().len() {
            let rows = rows(&fleet, from, to, mean_rate, &mut rng);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                sent = send(&mut fleet, &sender, gateway, from, to, rows, &mut rng) => match sent {
                    Ok(_) => {}
                    Err(TrafficError::Refused(error @ Refusal::GaveUp { .. })) => {
                        warn!(%error, "samples of a simulated gateway are lost");
                    }
                    Err(error) => return Err(error),
                },
            }
        }
        from = to;
    }
}

/// How many samples one gateway takes in a stretch: the mean, moved by the time of day and bursts, rounded by chance.
fn rows(fleet: &Fleet, from: DateTime<Utc>, to: DateTime<Utc>, mean_rate: f64, rng: &mut SmallRng) -> usize {
    let seconds = (to - from).as_seconds_f64().max(0.0);
    let expected = mean_rate * seconds * fleet.intensity(from) / fleet.gateways().len().max(1) as f64;
    (expected + rng.random::<f64>()) as usize
}

async fn send(
    fleet: &mut Fleet,
    sender: &Sender,
    gateway: usize,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    rows: usize,
    rng: &mut SmallRng,
) -> Result<usize, TrafficError> {
    if rows == 0 {
        return Ok(0);
    }
    let template = Template::new(sender.media(), fleet.batch(gateway, from, to, rows)?)?;
    let body = template.render(to, TimeDelta::zero(), rng)?;
    let packed = sender.pack(&body)?;
    let key = format!("demo-{}", Uuid::from_u128(rng.random()));
    Ok(sender.deliver(packed, &key).await?.accepted)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::Fleet;
    use super::rows;

    #[test]
    fn gateways_share_the_rate_over_time() {
        let fleet = Fleet::new(3, 4);
        let mut rng = SmallRng::seed_from_u64(1);
        let start = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let total: usize = (0..86_400 / 10)
            .map(|slot| start + TimeDelta::seconds(slot * 10))
            .map(|from| rows(&fleet, from, from + TimeDelta::seconds(10), 8.0, &mut rng))
            .sum();
        let rate = total as f64 / 86_400.0;
        assert!((1.6..2.8).contains(&rate), "{rate} a gateway");
    }
}
