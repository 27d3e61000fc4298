//! `/v1/orgs/{org}/audit`: events in, entries out.
//!
//! `POST` takes events as `invocations` takes samples. `GET` gives a page of the ledger. A cursor is a place in the
//! ledger and nothing else: entries are numbered once and for all, so pages that are fetched while entries keep
//! arriving hold each entry once (`page`). `GET canonical` gives entries as they were hashed, one a line. What a
//! verifier reads, checkpoints, tiles, segments and proofs, is in `api/ledger`. Nothing is kept here.

mod canonical;
mod columns;
mod page;

use std::ops::Range;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use serde::Serialize;

pub(super) use canonical::{canonical, canonical_entry};
use columns::{Columns, Entry};
use page::Page;

use super::intake::{self, Accepted};
use super::who::Who;
use super::{Api, Problem};
use crate::ingest::RowKind;
use crate::model::{OrgName, Role};
use crate::query::{Asker, OrgView};

/// Takes a batch of events.
pub(super) async fn post(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Result<Who, Problem>,
    headers: HeaderMap,
    body: Body,
) -> Result<Accepted, Problem> {
    intake::take(&api, who, &org, &headers, body, RowKind::Event).await
}

/// Gives a page of entries.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    RawQuery(query): RawQuery,
    who: Who,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let page = Page::parse(query.as_deref().unwrap_or_default())?;
    let body = answer(&api, &org, &page, &who).await?;
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

async fn answer(api: &Api, org: &OrgName, page: &Page, who: &Who) -> Result<Vec<u8>, Problem> {
    let view = api.plane.view(org).await?;
    let wanted = page.limit.saturating_add(1);
    let (mut batches, mut rows): (Vec<RecordBatch>, u64) = (Vec::new(), 0);
    for window in page.windows(numbers(&view)) {
        if rows >= wanted {
            break;
        }
        // Readers of ledgers have slots of their own, so that a page waits for no other statement.
        let request = page.request(window, wanted - rows);
        let result = api.engine.query(view.clone(), request, Asker::ledger(who.label())).await?;
        let found: Vec<RecordBatch> = result.stream.try_collect().await?;
        rows += found.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
        batches.extend(found);
    }
    let unreadable = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a page of the ledger could not be read");
        Problem::internal()
    };
    let columns = batches.iter().map(Columns::of).collect::<Result<Vec<_>, _>>().map_err(|error| unreadable(&error))?;
    let all = columns.iter().flat_map(|columns| (0..columns.rows).map(move |row| (columns, row)));
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let entries = all.clone().take(limit).map(|(columns, row)| columns.entry(row)).collect::<Result<Vec<_>, _>>();
    let entries = entries.map_err(|error| unreadable(&error))?;
    let more = all.count() > limit;
    let next_cursor = entries.last().filter(|_| more).map(|entry| page.cursor(entry.seq));
    serde_json::to_vec(&Answer { entries, next_cursor }).map_err(|error| unreadable(&error))
}

/// The numbers of the entries that a view of a ledger has: the first, and the one after the last.
fn numbers(view: &OrgView) -> Range<i64> {
    let files = view.audit.files.iter().filter_map(|file| file.seq_range);
    let live = view.audit.live.iter().filter_map(|batch| {
        let numbers = batch.column_by_name("seq")?.as_primitive_opt::<Int64Type>()?.values();
        numbers.first().copied().zip(numbers.last().copied())
    });
    let all = files.chain(live).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    all.map_or(0..0, |(first, last)| first..last.saturating_add(1))
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    entries: Vec<Entry<'a>>,
    next_cursor: Option<String>,
}
