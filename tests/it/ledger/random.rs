//! Invariant I5 at random: a byte of any file of a ledger is changed, and either that is found, or what was changed
//! claims nothing about the ledger. The second is never taken on faith. It may be:
//!
//! - bytes of a segment that no reader takes anything about an entry from, such as `created_by`, checksums of pages,
//!   offsets that Parquet has twice, or `mcpg.position`: then the file still gives the same rows, and says the same of
//!   them in its counts, statistics and indexes;
//! - a partial tile that is not in the checkpoint's tree, left over from a smaller one.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::RecordBatch;
use mcpg::audit::verify::{Expected, Folder, VerifyError, verify};
use mcpg::audit::{Checkpoint, TileId};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, RowGroupMetaData};
use parquet::file::properties::WriterProperties;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::given::{Copied, Given, ORG, files};
use super::spoil::Segments;

const CHANGES: usize = 600;

fn verdict(copy: &Copied) -> Result<(), VerifyError> {
    let source = Folder::open(&copy.ledger).unwrap();
    let expected = Expected {
        org: ORG.parse().unwrap(),
        vkeys: vec![copy.vkey.parse().unwrap()],
        witnesses: Vec::new(),
        checkpoints: Vec::new(),
    };
    verify(&source, &expected, NonZeroUsize::new(1), &|_, _| {}).map(drop)
}

/// A segment's rows, what its metadata says of the ledger, and what its file says of the rows beside them.
type Said = (Vec<RecordBatch>, Vec<(String, Option<String>)>, String);

/// What a segment holds; none where it cannot be read.
fn said(copy: &Copied, path: &str) -> Option<Said> {
    let file = copy.ledger.join(path);
    let read = || {
        // The Arrow schema that the writer embedded is no part of the format.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let options = options.with_page_index_policy(PageIndexPolicy::Optional).with_encoding_stats_as_mask(false);
        let file = std::fs::File::open(&file).unwrap();
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).unwrap();
        let metadata = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
        let pairs = metadata.into_iter().filter(|pair| ["mcpg.v", "mcpg.origin"].contains(&pair.key.as_str()));
        let pairs = pairs.map(|pair| (pair.key, pair.value)).collect();
        let beside = beside(builder.metadata());
        (builder.build().unwrap().map(Result::unwrap).collect(), pairs, beside)
    };
    catch_unwind(AssertUnwindSafe(read)).ok()
}

/// What a query engine may take about rows from a footer and from indexes.
fn beside(metadata: &ParquetMetaData) -> String {
    let of = |group: &RowGroupMetaData| {
        let columns = group.columns().iter().map(|column| {
            let (encodings, pages) = (column.encodings().collect::<Vec<_>>(), column.page_encoding_stats());
            let levels = (column.definition_level_histogram(), column.repetition_level_histogram());
            let sizes = (column.num_values(), column.byte_range(), column.unencoded_byte_array_data_bytes());
            format!("{:?} {encodings:?} {pages:?} {levels:?} {sizes:?}", column.statistics())
        });
        format!("{} {:?} {:?}", group.num_rows(), group.sorting_columns(), columns.collect::<Vec<_>>())
    };
    let groups: Vec<_> = metadata.row_groups().iter().map(of).collect();
    let rows = metadata.file_metadata().num_rows();
    format!("{rows} {groups:?} {:?} {:?}", metadata.column_index(), metadata.offset_index())
}

/// Whether a tile is of the tree of a head of `size` entries.
fn is_of(size: u64, path: &str) -> bool {
    let id: TileId = path.strip_prefix("tile/").unwrap().parse().unwrap();
    TileId::within(size, id.kind, id.index) == Some(id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_is_found_or_claims_nothing() {
    let seed = 20_261_125;
    let mut rng = StdRng::seed_from_u64(seed);
    let given = Given::of(3_000, 3).await;
    let copy = given.copy();
    {
        // One segment with all that can be said beside the rows, as other programs might write it.
        let segments = Segments::of(&copy);
        let (name, pairs) =
            (segments.names[0], [("mcpg.v", "mcpg.audit/1"), ("mcpg.origin", segments.origin.as_str())]);
        let form = WriterProperties::builder().set_data_page_row_count_limit(200).set_write_batch_size(50);
        let form =
            form.set_write_page_header_statistics(true).set_bloom_filter_enabled(true).set_bloom_filter_max_ndv(100);
        segments.write_as(name, &segments.read(name), &pairs, form.build());
    }
    verdict(&copy).unwrap();
    let head: Checkpoint = {
        let text = String::from_utf8(copy.read("checkpoint")).unwrap();
        text.split("\n\n").next().unwrap().parse().unwrap()
    };
    let paths = files(&copy.ledger);
    let (mut found, mut claims_nothing) = (0, 0);
    for round in 0..CHANGES {
        // Every file as often as any other, so that small ones get their share.
        let path = &paths[rng.random_range(0..paths.len())];
        let original = copy.read(path);
        let at = rng.random_range(0..original.len());
        let mut bytes = original.clone();
        bytes[at] ^= 1 << rng.random_range(0..8);
        let before = path.starts_with("segments/").then(|| said(&copy, path).unwrap());
        copy.write(path, &bytes);
        let what = || format!("round {round} of seed {seed}: byte {at} of {path}");
        match verdict(&copy) {
            Err(VerifyError::NotSound(_)) => found += 1,
            Err(other) => panic!("{}: {other}", what()),
            Ok(()) if path.starts_with("segments/") => {
                assert_eq!(said(&copy, path), before, "{}", what());
                claims_nothing += 1;
            }
            Ok(()) => {
                assert!(path.starts_with("tile/") && !is_of(head.size, path), "{}", what());
                claims_nothing += 1;
            }
        }
        copy.write(path, &original);
    }
    assert!(found > CHANGES / 2, "{found} found, {claims_nothing} that claim nothing");
    verdict(&copy).unwrap();
}

/// The same with whole files: gone, empty, cut short, longer, or in each other's place.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_another_is_found_or_claims_nothing() {
    let seed = 20_261_126;
    let mut rng = StdRng::seed_from_u64(seed);
    let given = Given::of(1_500, 3).await;
    let copy = given.copy();
    let size = String::from_utf8(copy.read("checkpoint")).unwrap().lines().nth(1).unwrap().parse().unwrap();
    let paths = files(&copy.ledger);
    for round in 0..150 {
        let path = &paths[rng.random_range(0..paths.len())];
        let original = copy.read(path);
        let other = copy.read(&paths[rng.random_range(0..paths.len())]);
        let (what, bytes) = match rng.random_range(0..5) {
            0 => ("gone", None),
            1 => ("empty", Some(Vec::new())),
            2 => ("cut short", Some(original[..rng.random_range(0..original.len())].to_vec())),
            3 => ("longer", Some([&original[..], b"\n"].concat())),
            _ => ("another file", Some(other)),
        };
        if bytes.as_ref() == Some(&original) {
            continue;
        }
        match &bytes {
            None => copy.remove(path),
            Some(bytes) => copy.write(path, bytes),
        }
        let claims_nothing = match (path.split('/').next().unwrap(), what) {
            // Fewer kept heads are fewer claims.
            ("checkpoints", "gone") => true,
            // A hint: the newest that is kept by its size says the same.
            ("checkpoint", "gone") => true,
            ("tile", _) => !is_of(size, path),
            _ => false,
        };
        let outcome = verdict(&copy);
        assert_eq!(outcome.is_ok(), claims_nothing, "round {round} of seed {seed}: {path} {what}: {outcome:?}");
        copy.write(path, &original);
    }
}
