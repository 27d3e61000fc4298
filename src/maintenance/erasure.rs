//! Erasure of a caller: the samples of a caller are taken out of the files that hold them.
//!
//! Each file is looked through by its column `caller` alone; one that holds the caller is rewritten without those rows, as a merge of one
//! file, in one commit that checks that the file is live. The old file is deleted a day later with all others that no version names, and so
//! are the commits of Delta's log that have the caller among the bounds of a file.
//! What is not in the tables yet is flushed first. Counters and rollups have no callers, and stay as they are; the ledger's entries
//! are not touched, and one of them says what was erased, without the name: a keyed digest of it, by which the org can show that a request was
//! carried out.
//!
//! A run that is cut short has erased some files and not others; asked again it does the rest.

use std::sync::Arc;

use arrow::array::AsArray;
use deltalake_core::protocol::DeltaOperation;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;

use super::merge::{Filter, Merged, merge};
use super::names::Origin;
use super::plan::{Bounds, Merge};
use super::source::Source;
use super::tables::Handles;
use crate::flush::Part;
use crate::node::Node;
use crate::storage::StorageError;
use crate::storage::table::{LiveFile, Replacement};

/// The column that names callers.
const CALLER: &str = "caller";
/// How often the files are looked through again, when others merged some of them meanwhile.
const ROUNDS: usize = 8;

/// What an erasure did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// The entry of the hold that stops it.
    pub hold: Option<u64>,
    /// Samples that were taken out.
    pub rows: u64,
    /// Files that were rewritten or removed.
    pub files: u64,
}

/// Takes a caller's samples out of an org's files: until all of them were looked through and none was found.
pub(crate) async fn erase(node: &Node, tables: &Handles, caller: &str) -> Result<Erased, StorageError> {
    let mut erased = Erased::default();
    for _ in 0..ROUNDS {
        let view = tables.refresh(node, Part::Samples).await?;
        let mut is_clean = true;
        for file in &view.files {
            let found = count(node, tables, file, caller).await?;
            if found == 0 {
                continue;
            }
            is_clean = false;
            if rewrite(node, tables, file, caller, found).await? {
                erased.rows += found;
                erased.files += 1;
            }
        }
        if is_clean {
            // The bounds of the old files stand in Delta's commits, which are cut a day after there is a checkpoint past them.
            if erased.files > 0 {
                tables.checkpoint_now(Part::Samples).await?;
            }
            return Ok(erased);
        }
    }
    let folder = format!("orgs/{}", tables.org());
    Err(StorageError::failed("erase from", folder, "its files change faster than they are looked through; ask again"))
}

/// How many samples of a caller a file holds.
async fn count(node: &Node, tables: &Handles, file: &LiveFile, caller: &str) -> Result<u64, StorageError> {
    let site = tables.site(node, Part::Samples).await;
    let source = Source::open(&node.store, file, Arc::clone(&site.schema)).await?.by_columns();
    let mut found = 0;
    for group in 0..source.groups() {
        let Some((piece, metadata)) = source.column(&node.store, group, CALLER).await? else { continue };
        let (path, caller) = (file.data.path.clone(), caller.to_owned());
        let counted = tokio::task::spawn_blocking(move || {
            let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(&path, e);
            let mask = ProjectionMask::columns(metadata.parquet_schema(), [CALLER]);
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(piece, metadata);
            let reader = builder.with_row_groups(vec![group]).with_projection(mask).build().map_err(|e| damaged(&e))?;
            let mut count = 0;
            for batch in reader {
                let batch = batch.map_err(|e| damaged(&e))?;
                let Some(callers) = batch.column_by_name(CALLER) else { continue };
                let is_it = |name: &Option<&str>| *name == Some(caller.as_str());
                count += callers.as_string::<i32>().iter().filter(is_it).count() as u64;
            }
            Ok(count)
        });
        found += counted.await.unwrap_or_else(|e| Err(StorageError::failed("read", &file.data.path, e)))?;
    }
    Ok(found)
}

/// Rewrites a file without a caller's samples. Whether it did: something else may have been done to the file meanwhile.
async fn rewrite(
    node: &Node,
    tables: &Handles,
    file: &LiveFile,
    caller: &str,
    found: u64,
) -> Result<bool, StorageError> {
    let site = tables.site(node, Part::Samples).await;
    let fence = tables.fence(Part::Samples).await?;
    let into = Origin::of(file).again();
    let one = Merge { inputs: vec![file.clone()], partition: file.data.date, into };
    let filter = Filter { column: CALLER, value: caller.to_owned() };
    let Merged { files, rows } = Box::pin(merge(node, &one, &site, Bounds::default(), Some(filter))).await?;
    if rows + found != file.data.rows {
        let reason = format!("{rows} of {} rows would be left without the {found} that are to go", file.data.rows);
        return Err(StorageError::failed("erase from", &file.data.path, reason));
    }
    let operation = DeltaOperation::Delete { predicate: None };
    let replacement = Replacement { inputs: one.inputs, outputs: files, fence, changes_rows: true, operation };
    tables.replace(Part::Samples, &replacement, node.now()).await
}
