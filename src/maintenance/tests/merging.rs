//! Merging real files: the same rows, in order, in few files.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use rand::RngExt;

use super::super::names::{HOUR, Origin, Stage};
use super::{BEGAN, DAY, World, column, payloads, rng, samples};
use crate::flush::Part;
use crate::rollup::Granularity;
use crate::storage::parquet::{EncodedFile, sorted};
use crate::storage::table::LiveFile;

const HOURLY: Part = Part::Rollup(Granularity::Hour);
const DAILY: Part = Part::Rollup(Granularity::Day);

/// What all tables say.
async fn said(world: &World) -> (Vec<String>, impl PartialEq + std::fmt::Debug) {
    (world.rows(Part::Samples).await, (world.merged(Granularity::Hour).await, world.merged(Granularity::Day).await))
}

async fn count(world: &World, part: Part) -> usize {
    world.files(part).await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_days_of_flushes_become_a_file_each_with_the_same_rows() {
    let (world, mut rng) = (World::new(), rng(7));
    let mut flushes = 0;
    for at in (0..2 * DAY).step_by(3 * HOUR as usize / 2) {
        for minute in 0..2 {
            let now = BEGAN + at + minute * 60_000_000;
            world.set(now);
            world.flush(&samples(&mut rng, 40, now - 60_000_000, 60_000_000)).await;
            flushes += 1;
        }
    }
    let before = said(&world).await;
    assert_eq!(before.0.len(), flushes * 40);
    world.set(BEGAN + 3 * DAY);
    let done = world.maintain().await;
    assert_eq!(said(&world).await, before);
    // The first flush had rows of the evening before.
    assert_eq!((count(&world, Part::Samples).await, count(&world, HOURLY).await), (3, 3), "{done:?}");
    for file in world.files(Part::Samples).await.iter().filter(|file| Origin::of(file).stage == Stage::Day) {
        assert_eq!(sorted(&world.read(file).await).unwrap(), None, "{} is in order", file.name);
        let bytes = world.node.store.get(&file.data.path).await.unwrap().unwrap();
        let metadata = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().metadata().clone();
        let schema = metadata.file_metadata().schema_descr_ptr();
        for (column, of) in metadata.row_group(0).columns().iter().zip(schema.columns()) {
            let is_sought = ["invocation_id", "request_id", "session_id", "trace_id"].contains(&of.name());
            assert_eq!(column.bloom_filter_offset().is_some(), is_sought, "{}", of.name());
        }
    }
    let distinct: BTreeSet<_> = world.merged(Granularity::Hour).await.into_keys().collect();
    let rows: u64 = world.files(HOURLY).await.iter().map(|file| file.data.rows).sum();
    assert_eq!(rows, distinct.len() as u64, "partial rows are folded");
    // A day later nothing but what is live lies there.
    world.set(BEGAN + 5 * DAY);
    world.maintain().await;
    assert_eq!(said(&world).await, before);
    for part in Part::ALL {
        let folder = world.table(part).await.folder().clone();
        let there = world.node.store.list(&folder).await.unwrap();
        let data = there.iter().filter(|meta| !meta.location.as_ref().contains("_delta_log")).count();
        assert_eq!(data, count(&world, part).await, "{folder}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn daily_rollups_are_partitioned_by_month_and_become_a_file_each() {
    let (world, mut rng) = (World::new(), rng(8));
    for day in 0..40 {
        let now = BEGAN + day * DAY + HOUR;
        world.set(now);
        world.flush(&samples(&mut rng, 20, now - 60_000_000, 60_000_000)).await;
    }
    let before = said(&world).await;
    world.set(BEGAN + 100 * DAY);
    world.maintain().await;
    assert_eq!(said(&world).await, before);
    let names: Vec<_> =
        world.files(DAILY).await.iter().map(|file| file.name.split('/').next().unwrap().to_owned()).collect();
    assert_eq!(names, ["month=2031-03-01", "month=2031-04-01"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_an_older_version_wrote_in_order_of_arrival_are_merged_too() {
    let (world, mut rng) = (World::new(), rng(9));
    world.set(BEGAN + HOUR);
    world.flush(&samples(&mut rng, 300, BEGAN, HOUR)).await;
    // A file as it was: without an order, and without a column that has been added since.
    let rows = samples(&mut rng, 9_000, BEGAN, HOUR);
    let kept: Vec<usize> =
        (0..rows.num_columns() - 1).filter(|at| rows.schema().field(*at).name() != "response_bytes").collect();
    let rows = rows.project(&kept).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    let stats = serde_json::json!({ "numRecords": rows.num_rows() }).to_string();
    let file = EncodedFile { date: (BEGAN / DAY) as i32, bytes: Bytes::from(writer.into_inner().unwrap()), stats };
    let mut table = world.table(Part::Samples).await;
    table.append(vec![file], 1, 2, world.node.now(), || world.node.random.uuid()).await.unwrap();
    world.set(BEGAN + 2 * DAY);
    world.maintain().await;
    let files = world.files(Part::Samples).await;
    assert_eq!((files.len(), files[0].data.rows), (1, 9_300));
    let times = files[0].data.time_range.unwrap();
    assert!(times.0 >= BEGAN && times.1 < BEGAN + HOUR);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_column_that_is_not_known_is_left_as_it_is() {
    let (world, mut rng) = (World::new(), rng(10));
    world.set(BEGAN + HOUR);
    world.flush(&samples(&mut rng, 30, BEGAN, HOUR)).await;
    let rows = samples(&mut rng, 30, BEGAN, HOUR);
    let columns = (0..rows.num_columns() - 1).map(|at| {
        let name = rows.schema().field(at).name().replace("caller", "caller_of_the_future");
        (name, std::sync::Arc::clone(rows.column(at)), true)
    });
    let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    let stats = serde_json::json!({ "numRecords": rows.num_rows() }).to_string();
    let file = EncodedFile { date: (BEGAN / DAY) as i32, bytes: Bytes::from(writer.into_inner().unwrap()), stats };
    let mut table = world.table(Part::Samples).await;
    table.append(vec![file], 1, 2, world.node.now(), || world.node.random.uuid()).await.unwrap();
    world.set(BEGAN + 2 * DAY);
    let (tables, mut memory) = (world.handles().await, super::Memory::default());
    let error = super::turn(&world.node, &tables, &mut memory).await.unwrap_err().to_string();
    assert!(error.contains("caller_of_the_future"), "{error}");
    assert_eq!(count(&world, Part::Samples).await, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    /// Whatever is flushed when, early and late: merging changes no row and no answer.
    #[test]
    fn merging_leaves_no_trace_in_what_is_said(
        seed in any::<u64>(),
        flushes in prop::collection::vec((0i64..60, 0usize..60, 0i64..30), 2..14),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (world, mut rng) = (World::new(), rng(seed));
            let mut flushes = flushes;
            flushes.sort_unstable();
            for (hour, rows, late) in flushes {
                let now = BEGAN + hour * HOUR + rng.random_range(0..HOUR);
                world.set(now);
                world.flush(&samples(&mut rng, rows.max(1), now - late * HOUR, HOUR)).await;
                if rng.random_bool(0.3) {
                    let before = said(&world).await;
                    world.maintain().await;
                    assert_eq!(said(&world).await, before);
                }
            }
            let before = said(&world).await;
            world.set(BEGAN + 6 * DAY);
            world.maintain().await;
            assert_eq!(said(&world).await, before);
            for part in [Part::Samples, HOURLY] {
                let files = world.files(part).await;
                let days: BTreeSet<_> = files.iter().map(|file| file.data.date).collect();
                assert!(files.len() <= 3 * days.len(), "{} files of {} days", files.len(), days.len());
            }
        });
    }
}

/// Sealed payloads are as wide as calls are: what a merge holds of them is bounded by bytes, and so is what their
/// readers do.
#[tokio::test(flavor = "multi_thread")]
async fn sealed_payloads_become_a_file_a_day_in_row_groups_that_fit_memory() {
    let (world, mut rng) = (World::new(), rng(22));
    let (mut bytes, mut ids) = (0, BTreeSet::new());
    for hour in 0..8 {
        world.set(BEGAN + hour * HOUR + HOUR / 2);
        let calls = samples(&mut rng, 25, BEGAN + hour * HOUR, HOUR / 2);
        let sealed = payloads(&mut rng, &calls, 100 << 10);
        bytes += 25 * (100 << 10);
        ids.extend(column(&sealed, "invocation_id").as_string::<i32>().iter().map(|id| id.unwrap().to_owned()));
        world.flush_payloads(&sealed).await;
    }
    let before = world.rows(Part::Payloads).await;
    world.set(BEGAN + 2 * DAY);
    world.maintain().await;
    assert_eq!(world.rows(Part::Payloads).await, before);
    let files = world.files(Part::Payloads).await;
    assert_eq!(files.len(), 1, "{files:?}");
    let stored = world.node.store.get(&files[0].data.path).await.unwrap().unwrap();
    let metadata = ParquetRecordBatchReaderBuilder::try_new(stored).unwrap().metadata().clone();
    assert!(metadata.num_row_groups() > 1, "{bytes} bytes in one row group");
    for group in metadata.row_groups() {
        assert!(group.compressed_size() < 20 << 20, "{} bytes", group.compressed_size());
        assert!(group.column(1).bloom_filter_offset().is_some(), "a call is looked for by its id");
    }
    let found = files[0].data.id_range.clone().unwrap();
    assert_eq!((Some(&*found.0), Some(&*found.1)), (ids.first().map(String::as_str), ids.last().map(String::as_str)));
}

/// One unreadable file does not keep the others from being maintained.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_keeps_no_other_merge_and_no_other_table_waiting() {
    let (world, mut rng) = (World::new(), rng(23));
    for day in 0..2 {
        for minute in 0..3 {
            world.set(BEGAN + day * DAY + HOUR + minute * 60_000_000);
            world.flush(&samples(&mut rng, 20, BEGAN + day * DAY, HOUR)).await;
        }
    }
    let damaged = world.files(Part::Samples).await.remove(0);
    let bytes = vec![7; usize::try_from(damaged.data.size).unwrap()];
    world.node.store.put(&damaged.data.path, bytes.into()).await.unwrap();
    world.set(BEGAN + 3 * DAY);
    let (tables, mut memory) = (world.handles().await, super::Memory::default());
    let error = super::turn(&world.node, &tables, &mut memory).await.unwrap_err().to_string();
    assert!(error.contains(damaged.data.path.as_ref()), "{error}");
    let of_day = |files: Vec<LiveFile>, day: i64| {
        files.iter().filter(|file| i64::from(file.data.date) == BEGAN / DAY + day).count()
    };
    assert_eq!(of_day(world.files(Part::Samples).await, 0), 3, "they stay as they are");
    assert_eq!(of_day(world.files(Part::Samples).await, 1), 1, "the next day's are merged");
    assert_eq!((count(&world, HOURLY).await, count(&world, DAILY).await), (2, 2));
    // The files that were merged are deleted in time.
    world.set(BEGAN + 5 * DAY);
    super::turn(&world.node, &tables, &mut super::Memory::default()).await.unwrap_err();
    let folder = world.table(HOURLY).await.folder().clone();
    let there = world.node.store.list(&folder).await.unwrap();
    let data = there.iter().filter(|meta| !meta.location.as_ref().contains("_delta_log")).count();
    assert_eq!(data, 2);
}

/// What a week does to one org: files and Delta's log stay as small as they are after the first days.
#[tokio::test(flavor = "multi_thread")]
async fn a_week_of_real_flushes_leaves_few_files_and_a_short_log() {
    let (world, mut rng) = (World::new(), rng(21));
    let (mut sent, mut there) = (0, Vec::new());
    for day in 0..7 {
        for part in 0..8 {
            let now = BEGAN + day * DAY + (part + 1) * 3 * HOUR;
            world.set(now);
            world.flush(&samples(&mut rng, 30, now - 3 * HOUR, 3 * HOUR)).await;
            sent += 30;
        }
        world.maintain().await;
        let folder = world.table(Part::Samples).await.folder().clone();
        there.push(world.node.store.list(&folder).await.unwrap().len());
    }
    world.set(BEGAN + 7 * DAY + 3 * HOUR);
    world.maintain().await;
    for part in Part::ALL {
        let files = world.files(part).await;
        for day in files.iter().map(|file| file.data.date).collect::<BTreeSet<_>>() {
            let of = files.iter().filter(|file| file.data.date == day).count();
            assert!(of <= 12, "{of} files of {part:?} of day {day}");
        }
    }
    assert_eq!(world.rows(Part::Samples).await.len(), sent);
    let most = there.iter().max().unwrap();
    assert!(*most < 130, "data files and Delta's log by day: {there:?}");
}
