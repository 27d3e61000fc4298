//! Erasure of a caller: the samples of a caller are taken out of the files that hold them, and the sealed payloads of
//! these calls.
//!
//! Each file is looked through by its column `caller` alone; one that holds the caller is rewritten without those rows,
//! as a merge of one file, in one commit that checks that the file is live. The old file is deleted a day later with
//! all others that no version names, and so are the commits of Delta's log that have the caller among the bounds of a
//! file. What is not in the tables yet is flushed first. Counters and rollups have no callers, and stay as they are;
//! the ledger's entries are not touched, and one of them says what was erased, without the name: a keyed digest of it,
//! by which the org can show that a request was carried out.
//!
//! A sealed payload does not say whose call it is of; the sample with its id does. So the payloads of a file's calls go
//! before its samples: a run that is cut short has erased some files and not others, and asked again it does the rest.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::SchemaRef;
use deltalake_core::protocol::DeltaOperation;
use futures::future::join_all;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;
use uuid::Uuid;

use super::merge::{Filter, Merged, merge};
use super::names::Origin;
use super::plan::{Bounds, Merge};
use super::source::{ByColumns, Source};
use super::tables::{Handles, View};
use crate::flush::Part;
use crate::node::Node;
use crate::storage::StorageError;
use crate::storage::table::{LiveFile, Replacement};

/// How often the files are looked through again, when others merged some of them meanwhile.
const ROUNDS: usize = 8;
/// Files that are looked through at once.
const FILES_AT_ONCE: usize = 8;
/// Calls whose payloads are looked for at a time: 16 bytes of memory each, and as much again.
const CALLS_AT_ONCE: usize = 1 << 20;

/// What an erasure did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// The entry of the hold that stops it.
    pub hold: Option<u64>,
    /// Samples that were taken out.
    pub rows: u64,
    /// Sealed payloads that were taken out.
    pub payloads: u64,
    /// Files that were rewritten or removed.
    pub files: u64,
}

/// Takes a caller's samples, and what was captured of these calls, out of an org's files: until all of them were looked
/// through and none was found.
pub(crate) async fn erase(node: &Node, tables: &Handles, caller: &str) -> Result<Erased, StorageError> {
    let mut erased = Erased::default();
    let of_caller = Filter::Caller(caller.to_owned());
    for _ in 0..ROUNDS {
        let view = writable(node, tables, Part::Samples).await?;
        let (schema, mut is_clean) = (tables.site(node, Part::Samples).await.schema, true);
        for files in view.files.chunks(FILES_AT_ONCE) {
            let counts = files.iter().map(|file| count(node, &schema, file, &of_caller)).collect::<Vec<_>>();
            for (file, found) in files.iter().zip(join_all(counts).await) {
                let found = found?;
                if found == 0 {
                    continue;
                }
                is_clean = false;
                payloads_of(node, tables, file, &of_caller, &mut erased).await?;
                if rewrite(node, tables, Part::Samples, file, &of_caller, found).await? {
                    erased.rows += found;
                    erased.files += 1;
                }
            }
        }
        if is_clean {
            // The bounds of the old files stand in Delta's commits, which are cut a day after there is a checkpoint
            // past them: also of a run before that was cut short.
            tables.checkpoint_past(Part::Samples).await?;
            return Ok(erased);
        }
    }
    Err(restless(tables))
}

fn restless(tables: &Handles) -> StorageError {
    let folder = format!("orgs/{}", tables.org());
    StorageError::failed("erase from", folder, "its files change faster than they are looked through; ask again")
}

/// A table as it is now, of an org that may be written.
async fn writable(node: &Node, tables: &Handles, part: Part) -> Result<View, StorageError> {
    if !tables.may_write() {
        let folder = format!("orgs/{}", tables.org());
        return Err(StorageError::failed("erase from", folder, "the org is being loaded again; ask again"));
    }
    tables.refresh(node, part).await
}

/// Takes the sealed payloads out of the calls of a file of samples that a filter takes.
async fn payloads_of(
    node: &Node,
    tables: &Handles,
    file: &LiveFile,
    filter: &Filter,
    erased: &mut Erased,
) -> Result<(), StorageError> {
    if writable(node, tables, Part::Payloads).await?.files.is_empty() {
        return Ok(());
    }
    let site = tables.site(node, Part::Samples).await;
    let columns = Source::open(&node.store, file, site.schema).await?.by_columns();
    let mut calls = HashSet::new();
    for group in 0..columns.groups() {
        let of = filter.clone();
        let is_its = each(node, file, &columns, group, filter.column(), move |value| of.takes(value)).await?;
        let ids = each(node, file, &columns, group, Filter::CALL, call).await?;
        calls.extend(is_its.into_iter().zip(ids).filter_map(|(is_its, id)| id.filter(|_| is_its)));
        if calls.len() >= CALLS_AT_ONCE || group + 1 == columns.groups() {
            erase_payloads(node, tables, std::mem::take(&mut calls), erased).await?;
        }
    }
    Ok(())
}

/// Takes the sealed payloads of calls out of the files that hold them.
async fn erase_payloads(
    node: &Node,
    tables: &Handles,
    calls: HashSet<u128>,
    erased: &mut Erased,
) -> Result<(), StorageError> {
    let text = |id: &u128| Uuid::from_u128(*id).hyphenated().to_string();
    let Some((least, greatest)) = calls.iter().min().map(text).zip(calls.iter().max().map(text)) else { return Ok(()) };
    let filter = Filter::Calls(Arc::new(calls));
    for _ in 0..ROUNDS {
        let view = writable(node, tables, Part::Payloads).await?;
        let may_hold = |file: &&LiveFile| {
            file.data.id_range.as_ref().is_none_or(|(from, to)| **from <= *greatest && *least <= **to)
        };
        let (schema, mut is_clean) = (tables.site(node, Part::Payloads).await.schema, true);
        for file in view.files.iter().filter(may_hold) {
            let found = count(node, &schema, file, &filter).await?;
            if found == 0 {
                continue;
            }
            is_clean = false;
            if rewrite(node, tables, Part::Payloads, file, &filter, found).await? {
                erased.payloads += found;
                erased.files += 1;
            }
        }
        if is_clean {
            return Ok(());
        }
    }
    Err(restless(tables))
}

/// An id of a call as a number.
fn call(id: Option<&str>) -> Option<u128> {
    Uuid::try_parse(id?).ok().map(|id| id.as_u128())
}

/// How many rows of a file a filter takes.
async fn count(node: &Node, schema: &SchemaRef, file: &LiveFile, filter: &Filter) -> Result<u64, StorageError> {
    let columns = Source::open(&node.store, file, Arc::clone(schema)).await?.by_columns();
    let mut found = 0;
    for group in 0..columns.groups() {
        let of = filter.clone();
        let is_its = each(node, file, &columns, group, filter.column(), move |value| of.takes(value)).await?;
        found += is_its.into_iter().filter(|is_its| *is_its).count() as u64;
    }
    Ok(found)
}

/// What `of` makes of each value of a column of texts, in one row group; nothing if the file has no such column.
async fn each<T: Send + 'static>(
    node: &Node,
    file: &LiveFile,
    columns: &ByColumns,
    group: usize,
    column: &'static str,
    of: impl Fn(Option<&str>) -> T + Send + 'static,
) -> Result<Vec<T>, StorageError> {
    let Some((piece, metadata)) = columns.column(&node.store, group, column).await? else { return Ok(Vec::new()) };
    let path = file.data.path.clone();
    let read = tokio::task::spawn_blocking(move || {
        let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(&path, e);
        let mask = ProjectionMask::columns(metadata.parquet_schema(), [column]);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(piece, metadata);
        let reader = builder.with_row_groups(vec![group]).with_projection(mask).build().map_err(|e| damaged(&e))?;
        let mut made = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|e| damaged(&e))?;
            let Some(values) = batch.column_by_name(column) else { continue };
            made.extend(values.as_string::<i32>().iter().map(&of));
        }
        Ok(made)
    });
    read.await.unwrap_or_else(|e| Err(StorageError::failed("read", &file.data.path, e)))
}

/// Rewrites a file without the rows that a filter takes. Whether it did: something else may have been done to the file
/// meanwhile.
async fn rewrite(
    node: &Node,
    tables: &Handles,
    part: Part,
    file: &LiveFile,
    filter: &Filter,
    found: u64,
) -> Result<bool, StorageError> {
    let site = tables.site(node, part).await;
    let fence = tables.fence(part).await?;
    let into = Origin::of(file).again();
    let one = Merge { inputs: vec![file.clone()], partition: file.data.date, into };
    let Merged { files, rows } = Box::pin(merge(node, &one, &site, Bounds::default(), Some(filter.clone()))).await?;
    if rows + found != file.data.rows {
        let reason = format!("{rows} of {} rows would be left without the {found} that are to go", file.data.rows);
        return Err(StorageError::failed("erase from", &file.data.path, reason));
    }
    let operation = DeltaOperation::Delete { predicate: None };
    let replacement = Replacement { inputs: one.inputs, outputs: files, fence, changes_rows: true, operation };
    tables.replace(part, &replacement, node.now()).await
}
