//! A table beside other writers of it, and over a store that fails.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Date32Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use uuid::Uuid;

use super::{DataFile, Table, TableSnapshot};
use crate::storage::{Store, parquet};

const HOUR: i64 = 3_600_000_000;

fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let fields = [("at", time), ("tool", DataType::Utf8), ("date", DataType::Date32)];
    Arc::new(Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, false)).to_vec()))
}

fn files(hours: &[i64]) -> Vec<parquet::EncodedFile> {
    let times = TimestampMicrosecondArray::from(hours.iter().map(|h| h * HOUR).collect::<Vec<_>>());
    let dates = hours.iter().map(|h| (h / 24) as i32).collect::<Vec<i32>>();
    let tools = StringArray::from(vec!["t"; hours.len()]);
    let columns: Vec<arrow::array::ArrayRef> =
        vec![Arc::new(times.with_timezone("UTC")), Arc::new(tools), Arc::new(Date32Array::from(dates))];
    parquet::encode(&schema(), &[RecordBatch::try_new(schema(), columns).unwrap()], 1).unwrap()
}

async fn open(store: &Store) -> (Table, TableSnapshot) {
    Table::open(store, &"acme".parse().unwrap(), "t", schema(), "at").await.unwrap()
}

fn days(files: &[DataFile]) -> BTreeMap<i32, (u64, Option<(i64, i64)>)> {
    files.iter().map(|f| (f.date, (f.rows, f.time_range))).collect()
}

#[tokio::test]
async fn a_commit_is_read_back_with_its_position_dates_and_bounds() {
    let store = Store::open("memory://").unwrap();
    let (mut table, empty) = open(&store).await;
    assert_eq!((empty.position, empty.files.len()), (0, 0));
    table.append(files(&[1, 2, 25]), 0, 7, 0, Uuid::new_v4).await.unwrap();
    let (_, again) = open(&store).await;
    assert_eq!(again.position, 7);
    let expected = [(0, (2, Some((HOUR, 2 * HOUR)))), (1, (1, Some((25 * HOUR, 25 * HOUR))))];
    assert_eq!(days(&again.files), BTreeMap::from(expected));
}

#[tokio::test]
async fn a_table_of_an_earlier_version_gets_the_columns_it_lacks() {
    let store = Store::open("memory://").unwrap();
    let (mut old, _) = open(&store).await;
    old.append(files(&[1]), 0, 1, 0, Uuid::new_v4).await.unwrap();
    let mut fields: Vec<_> = schema().fields().iter().cloned().collect();
    fields.insert(2, Arc::new(Field::new("note", DataType::Utf8, true)));
    let wide = Arc::new(Schema::new(fields));
    let org = "acme".parse().unwrap();
    let (mut new, _) = Table::open(&store, &org, "t", Arc::clone(&wide), "at").await.unwrap();
    assert!(new.widened().unwrap().is_some());
    new.append(files(&[2]), 1, 2, 0, Uuid::new_v4).await.unwrap();
    assert!(new.widened().unwrap().is_none(), "once");
    let (again, snapshot) = Table::open(&store, &org, "t", wide, "at").await.unwrap();
    assert!(again.widened().unwrap().is_none());
    assert_eq!((snapshot.position, snapshot.files.len()), (2, 2));
    // One of the earlier version goes on with what it knows.
    let (mut old, _) = open(&store).await;
    old.append(files(&[3]), 2, 3, 0, Uuid::new_v4).await.unwrap();
    assert!(old.widened().unwrap().is_none());
}

#[tokio::test]
async fn of_two_nodes_that_flush_the_same_range_one_adds_files_and_the_other_takes_them_over() {
    let store = Store::open("memory://").unwrap();
    let ((mut one, _), (mut two, _)) = (open(&store).await, open(&store).await);
    one.append(files(&[1]), 0, 1, 0, Uuid::new_v4).await.unwrap();
    let (a, b) = futures::join!(
        one.append(files(&[2, 3]), 1, 5, 0, Uuid::new_v4),
        two.append(files(&[2, 3]), 1, 5, 0, Uuid::new_v4)
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((a.position, b.position), (5, 5));
    assert_eq!(a.files, b.files);
    assert_eq!(a.files.iter().map(|f| f.rows).sum::<u64>(), 3);
}

#[tokio::test]
async fn a_node_whose_base_is_out_of_date_adds_nothing_and_learns_the_position() {
    let store = Store::open("memory://").unwrap();
    let ((mut one, _), (mut two, _)) = (open(&store).await, open(&store).await);
    one.append(files(&[1]), 0, 9, 0, Uuid::new_v4).await.unwrap();
    let late = two.append(files(&[1]), 0, 4, 0, Uuid::new_v4).await.unwrap();
    assert_eq!((late.position, late.files.len()), (9, 1));
}

/// A store in which one read beneath `_delta_log` fails with EIO: the one that comes after so many others.
#[derive(Debug, Clone)]
struct FailsOnce {
    inner: Arc<InMemory>,
    /// Reads left until then; none: it has happened, or shall not.
    left: Arc<Mutex<Option<usize>>>,
    /// Whether the read itself fails, or its body.
    in_body: bool,
}

impl fmt::Display for FailsOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailsOnce")
    }
}

fn eio() -> Error {
    Error::Generic { store: "test", source: io::Error::from_raw_os_error(5).into() }
}

impl FailsOnce {
    fn fails(&self, path: Option<&Path>) -> bool {
        let concerned = path.is_some_and(|path| path.as_ref().contains("_delta_log"));
        let mut left = self.left.lock();
        match &mut *left {
            Some(0) if concerned => {
                *left = None;
                true
            }
            Some(n) if concerned => {
                *n -= 1;
                false
            }
            _ => false,
        }
    }
}

#[async_trait]
impl ObjectStore for FailsOnce {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fails = self.fails(Some(location));
        if fails && !self.in_body {
            return Err(eio());
        }
        let mut got = self.inner.get_opts(location, options).await?;
        if fails {
            got.payload = GetResultPayload::Stream(stream::iter([Err(eio())]).boxed());
        }
        Ok(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if self.fails(Some(location)) { Err(eio()) } else { self.inner.get_ranges(location, ranges).await }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.fails(prefix) { stream::iter([Err(eio())]).boxed() } else { self.inner.list(prefix) }
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fails(prefix) {
            true => stream::iter([Err(eio())]).boxed(),
            false => self.inner.list_with_offset(prefix, offset),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        if self.fails(prefix) { Err(eio()) } else { self.inner.list_with_delimiter(prefix).await }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A store with a table of three commits, whose last is the position 3.
async fn three_commits() -> (Arc<InMemory>, Store) {
    let objects = Arc::new(InMemory::new());
    let store = Store::new(Arc::clone(&objects) as Arc<dyn ObjectStore>, "memory://");
    let (mut table, _) = open(&store).await;
    for position in 1..=3 {
        table.append(files(&[1]), position - 1, position, 0, Uuid::new_v4).await.unwrap();
    }
    (objects, store)
}

/// Opens (or, where one is given that is behind, refreshes) a table again and again, another read failing each time,
/// until none is left to fail. Gives how many were tried.
async fn each_read_fails_in_turn(objects: &Arc<InMemory>, in_body: bool, refresh: bool) -> usize {
    let plain = Store::new(Arc::clone(objects) as Arc<dyn ObjectStore>, "memory://");
    for nth in 0..200 {
        let left = Arc::new(Mutex::new(None));
        let failing = FailsOnce { inner: Arc::clone(objects), left: Arc::clone(&left), in_body };
        let store = Store::new(Arc::new(failing), "memory://");
        let outcome = if refresh {
            let (mut table, before) = open(&store).await;
            let (mut other, _) = open(&plain).await;
            other.append(files(&[1]), before.position, before.position + 1, 0, Uuid::new_v4).await.unwrap();
            *left.lock() = Some(nth);
            let outcome = table.refresh().await;
            let last = left.lock().take();
            let now = table.refresh().await.unwrap();
            assert_eq!(now.position, before.position + 1, "as if nothing had failed");
            *left.lock() = last;
            outcome
        } else {
            *left.lock() = Some(nth);
            Table::open(&store, &"acme".parse().unwrap(), "t", schema(), "at").await.map(|(_, snapshot)| snapshot)
        };
        if left.lock().is_some() {
            outcome.unwrap();
            return nth;
        }
        // A library may do without what it could not read (a hint, say): then what it read is all the same right.
        match outcome {
            Ok(snapshot) => assert!(snapshot.position >= 3, "read {nth}: {}", snapshot.position),
            Err(e) => assert!(!e.is_damage(), "read {nth}: {e}"),
        }
    }
    panic!("it reads without end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_the_delta_log_that_fails_once_is_no_damage_whatever_wraps_it() {
    let (objects, _) = three_commits().await;
    for in_body in [false, true] {
        for refresh in [false, true] {
            let reads = each_read_fails_in_turn(&objects, in_body, refresh).await;
            assert!(reads >= 2, "{reads} reads failed in turn (body: {in_body}, refresh: {refresh})");
        }
    }
}

#[tokio::test]
async fn a_commit_that_arrives_whole_and_makes_no_sense_is_damage() {
    let commit = Path::from("orgs/acme/t/_delta_log/00000000000000000003.json");
    type Spoil = fn(Vec<u8>) -> Vec<u8>;
    let truncated: Spoil = |mut bytes| {
        bytes.truncate(bytes.len() / 2);
        bytes
    };
    let garbled: Spoil = |mut bytes| {
        bytes.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x55);
        bytes
    };
    for spoil in [truncated, garbled] {
        let (objects, store) = three_commits().await;
        let bytes = objects.get(&commit).await.unwrap().bytes().await.unwrap().to_vec();
        objects.put(&commit, spoil(bytes).into()).await.unwrap();
        let opened = Table::open(&store, &"acme".parse().unwrap(), "t", schema(), "at").await;
        let error = opened.map(|(_, snapshot)| snapshot.position).unwrap_err();
        assert!(error.is_damage(), "{error}");
    }
}
