//! What the ledger costs: chaining entries and hashing their leaves, and verifying a ledger, on one core and on two.

#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up should stop")]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, ListBuilder, StringArray, StringBuilder, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ed25519_dalek::SigningKey;
use mcpg::audit::segment::{SegmentName, SegmentWriter};
use mcpg::audit::tree::Peaks;
use mcpg::audit::verify::{Expected, Folder, verify};
use mcpg::audit::{ChainHead, Checkpoint, Signer, SigningKeys, TreeEdge, seal};
use mcpg::model::schema::schemas;

const ORIGIN: &str = "mcpg.local/orgs/acme/audit/1";
/// Entries of a batch, about what one group commit brings under load.
const ROWS: u64 = 8_192;
/// Entries of the ledger that is verified, and of a segment of it.
const ENTRIES: u64 = 32 * ROWS;
const SEGMENT: u64 = 8 * ROWS;

/// Decisions as a gateway records them, all ids filled.
fn events(from: u64, count: u64) -> RecordBatch {
    let schema = &schemas().unwrap().audit_event;
    let text = |of: &dyn Fn(u64) -> String| -> ArrayRef {
        Arc::new((from..from + count).map(|n| Some(of(n))).collect::<StringArray>())
    };
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match field.data_type() {
            DataType::Timestamp(..) => {
                let times = (from..from + count).map(|n| 1_790_000_000_000_000 + n as i64 * 997);
                Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
            }
            DataType::Int64 => Arc::new((from..from + count).map(|n| Some(n as i64)).collect::<Int64Array>()),
            DataType::List(_) => {
                let mut lists = ListBuilder::new(StringBuilder::new());
                (0..count).for_each(|n| lists.append_value([Some(format!("policy-{}", n % 9))]));
                Arc::new(lists.finish())
            }
            _ => match field.name().as_str() {
                "event_id" | "invocation_id" => text(&|n| format!("01933b7e-0000-7000-8000-{n:012x}")),
                "trace_id" | "salt" => text(&|n| format!("{:032x}", u128::from(n) * 0x9e37_79b9_7f4a_7c15_f39c)),
                "span_id" => text(&|n| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
                "request_id" => text(&|n| format!("req-{n:010}")),
                "actor" => text(&|n| format!("user:person{:03}@acme", n % 500)),
                "action" => text(&|n| if n % 20 == 0 { "tool.deny" } else { "tool.permit" }.to_owned()),
                "target" => text(&|n| format!("github/list_things_{}", n % 300)),
                "detail" => text(&|n| format!("{{\"tool\":\"list_things\",\"size\":{n}}}")),
                _ => text(&|n| format!("{}-{}", field.name(), n % 5)),
            },
        }
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

fn sealing(c: &mut Criterion) {
    let (schema, batch) = (&schemas().unwrap().audit_log, events(0, ROWS));
    let mut group = c.benchmark_group("seal");
    group.throughput(Throughput::Elements(ROWS)).sample_size(20);
    group.bench_function("number, chain and hash, one core", |b| {
        b.iter(|| seal(schema, ORIGIN, &ChainHead::default(), black_box(&batch)).unwrap());
    });
    group.bench_function("and put into the tree", |b| {
        b.iter(|| {
            let sealed = seal(schema, ORIGIN, &ChainHead::default(), black_box(&batch)).unwrap();
            let mut edge = TreeEdge::default();
            sealed.leaves.iter().for_each(|leaf| edge.push(leaf));
            (edge.root(), edge.take_tiles())
        });
    });
    let sealed = seal(schema, ORIGIN, &ChainHead::default(), &batch).unwrap();
    group.bench_function("write the segment", |b| {
        b.iter(|| {
            let mut writer = SegmentWriter::new(schema, ORIGIN).unwrap();
            writer.write(black_box(&sealed.batch)).unwrap();
            writer.finish().unwrap()
        });
    });
    group.finish();
}

/// A ledger on the disk, signed by a key of its own.
fn ledger(folder: &Path) -> Expected {
    let schema = &schemas().unwrap().audit_log;
    let keys = Arc::new(SigningKeys::new(SigningKey::from_bytes(&[7; 32])));
    let vkey = keys.vkey(ORIGIN).unwrap();
    let write = |path: String, bytes: &[u8]| {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let (mut head, mut edge) = (ChainHead::default(), TreeEdge::default());
    for first in (0..ENTRIES).step_by(SEGMENT as usize) {
        let mut writer = SegmentWriter::new(schema, ORIGIN).unwrap();
        for from in (first..first + SEGMENT).step_by(ROWS as usize) {
            let sealed = seal(schema, ORIGIN, &head, &events(from, ROWS)).unwrap();
            sealed.leaves.iter().for_each(|leaf| edge.push(leaf));
            writer.write(&sealed.batch).unwrap();
            head = sealed.head;
        }
        let name = SegmentName { first, last: first + SEGMENT - 1 };
        write(format!("segments/{name}"), &writer.finish().unwrap());
    }
    edge.take_tiles().iter().for_each(|(path, bytes)| write(format!("tile/{path}"), bytes));
    let checkpoint = Checkpoint { origin: ORIGIN.to_owned(), size: edge.size(), root: edge.root() };
    let mut signer = Signer::new(ORIGIN.to_owned(), keys, Peaks::default());
    let note = signer.sign(&checkpoint, edge.grown()).unwrap();
    write("checkpoint".to_owned(), note.as_bytes());
    Expected { org: "acme".parse().unwrap(), vkeys: vec![vkey], witnesses: Vec::new(), checkpoints: Vec::new() }
}

fn verifying(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let expected = ledger(folder.path());
    let source = Folder::open(folder.path()).unwrap();
    let mut group = c.benchmark_group("verify");
    group.throughput(Throughput::Elements(ENTRIES)).sample_size(10);
    for (cores, workers) in [("one core", None), ("two cores", NonZeroUsize::new(1))] {
        group.bench_function(BenchmarkId::from_parameter(cores), |b| {
            b.iter(|| verify(&source, &expected, workers, &|_, _| {}).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, sealing, verifying);
criterion_main!(benches);
