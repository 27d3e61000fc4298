//! The long random run, `make soak`: lives of every plan, one seed after the other, for as long as `SOAK_SECONDS` says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::apart::{Told, live_apart};
use super::life::Plan;

#[test]
#[ignore = "takes an hour: make soak"]
fn soak() {
    let number = |name: &str, otherwise| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    let (began, length) = (Instant::now(), Duration::from_secs(number("SOAK_SECONDS", 3_600)));
    let first = number("SOAK_SEED", 1_000_000);
    let (next, operations, answers) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let failed: Mutex<Option<Told>> = Mutex::new(None);
    let live_on = || {
        while began.elapsed() < length && failed.lock().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let plan = Plan::ALL[seed as usize % Plan::ALL.len()];
            let told = live_apart(plan, seed, None);
            match &told.outcome {
                Ok(summary) => {
                    operations.fetch_add(summary.operations, Ordering::Relaxed);
                    answers.fetch_add(summary.answers, Ordering::Relaxed);
                    println!("{} {seed}: {summary:?}", plan.name());
                }
                Err(_) => drop(failed.lock().get_or_insert(told)),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(live_on);
        }
    });
    println!(
        "{} lives from seed {first} on, {} operations of the store, {} answers checked, in {:?}",
        next.into_inner() - first,
        operations.into_inner(),
        answers.into_inner(),
        began.elapsed()
    );
    if let Some(told) = failed.into_inner() {
        told.unwrap();
    }
}
