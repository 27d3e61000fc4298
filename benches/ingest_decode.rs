//! Decoding and judging bodies of 1,000 samples in each form: what ingest costs before anything is stored.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up should stop")]

use std::hint::black_box;

use chrono::{DateTime, TimeDelta};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mcpg::demo::{Fleet, Template};
use mcpg::ingest::{DecodeContext, DecodeLimits, Encoding, Media, RandomIds, decode};
use rand::SeedableRng;
use rand::rngs::SmallRng;

const ROWS: usize = 1000;

fn decoding(criterion: &mut Criterion) {
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
    let org = "default".parse().expect("a sound name");
    let context = DecodeContext { org: &org, now, limits: DecodeLimits::default() };
    let samples = Fleet::new(1, 3).batch(0, now - TimeDelta::seconds(1), now, ROWS).expect("samples");
    let mut rng = SmallRng::seed_from_u64(1);
    let mut group = criterion.benchmark_group("ingest_decode");
    group.throughput(Throughput::Elements(ROWS as u64));
    for media in Media::ALL {
        let template = Template::new(media, samples.clone()).expect("a template");
        let body = template.render(now, TimeDelta::zero(), &mut rng).expect("a body");
        let mut ids = RandomIds::default();
        group.bench_function(media.as_str(), |bencher| {
            bencher.iter(|| decode(black_box(&body.bytes), media, Encoding::Identity, &context, &mut ids));
        });
    }
    group.finish();
}

fn generating(criterion: &mut Criterion) {
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
    let mut fleet = Fleet::new(1, 3);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut group = criterion.benchmark_group("generate");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("fleet", |bencher| {
        bencher.iter(|| fleet.batch(0, now, now + TimeDelta::seconds(1), ROWS));
    });
    for media in Media::ALL {
        let samples = fleet.batch(0, now, now + TimeDelta::seconds(1), ROWS).expect("samples");
        let template = Template::new(media, samples).expect("a template");
        group.bench_function(media.as_str(), |bencher| {
            bencher.iter(|| template.render(now, TimeDelta::zero(), &mut rng));
        });
    }
    group.finish();
}

criterion_group!(benches, decoding, generating);
criterion_main!(benches);
