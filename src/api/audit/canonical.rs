//! `GET /v1/orgs/{org}/audit/canonical`: entries as they were hashed, one a line.
//!
//! `sha256sum` of a line without its end is the entry's hash. The answer is streamed, so none of it is held for long.
//! Of entries that were removed, the first ones after them come.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use super::columns::Columns;
use super::numbers;
use crate::api::who::Who;
use crate::api::{Api, Problem};
use crate::audit::entry;
use crate::model::{OrgName, Role};
use crate::query::{Asker, QueryError, SqlRequest};

const CANONICAL: &str = include_str!("../../../queries/audit_canonical.sql");

/// Entries of an answer by default, and at most.
const LIMIT: u64 = 1_000;
const MOST: u64 = 10_000;

/// Gives entries as they were hashed, one a line: `sha256sum` of a line without its end is the entry's hash.
pub(in crate::api) async fn canonical(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    RawQuery(query): RawQuery,
    who: Who,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let range = Range::parse(query.as_deref().unwrap_or_default())?;
    let (origin, batches) = entries(&api, &org, range).await?;
    let lines = batches.map(move |batch| {
        let batch = batch.map_err(|error| error.to_string())?;
        let mut lines = Vec::with_capacity(batch.get_array_memory_size());
        write_canonical(&batch, &origin, |line| {
            lines.extend_from_slice(line);
            lines.push(b'\n');
        })?;
        Ok(Bytes::from(lines))
    });
    let lines = lines.map_err(|error: String| {
        tracing::error!(%error, "entries of the ledger could not be read");
        std::io::Error::other("the entries could not be read")
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// The canonical bytes of an entry, if it is there.
pub(in crate::api) async fn canonical_entry(api: &Api, org: &OrgName, seq: u64) -> Result<Option<Vec<u8>>, Problem> {
    let Ok(from) = i64::try_from(seq) else { return Ok(None) };
    let (origin, mut batches) = entries(api, org, Range { from, limit: 1 }).await?;
    let mut found = None;
    while let Some(batch) = batches.try_next().await? {
        let numbers = batch.column_by_name("seq").and_then(|seqs| seqs.as_primitive_opt::<Int64Type>().cloned());
        // Of entries that were removed, the first one after them comes.
        if numbers.is_none_or(|numbers| numbers.values().first() != Some(&from)) {
            continue;
        }
        write_canonical(&batch, &origin, |line| found = Some(line.to_vec())).map_err(|error| {
            tracing::error!(%error, "an entry of the ledger could not be read");
            Problem::internal()
        })?;
    }
    Ok(found)
}

/// Which entries are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    from: i64,
    limit: u64,
}

impl Range {
    fn parse(query: &str) -> Result<Self, Problem> {
        let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail);
        let (mut from, mut limit) = (None, None);
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*name {
                "from" => &mut from,
                "limit" => &mut limit,
                _ => return Err(invalid("no such parameter; there are from and limit".to_owned())),
            };
            if slot.replace(value).is_some() {
                return Err(invalid(format!("{name} is given twice")));
            }
        }
        let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let from = match from {
            None => 0,
            Some(text) => number(&text)
                .and_then(|from| i64::try_from(from).ok())
                .ok_or_else(|| invalid("from is the number of an entry".to_owned()))?,
        };
        let limit = match limit {
            None => LIMIT,
            Some(text) => number(&text)
                .filter(|limit| (1..=MOST).contains(limit))
                .ok_or_else(|| invalid(format!("limit is a number from 1 to {MOST}")))?,
        };
        Ok(Self { from, limit })
    }
}

/// Entries from a number on, as the org's view has them, and the ledger's origin.
async fn entries(
    api: &Api,
    org: &OrgName,
    range: Range,
) -> Result<(String, BoxStream<'static, Result<RecordBatch, QueryError>>), Problem> {
    let vkey = api.plane.ledger_key(org).await?;
    // A ledger's key is named by its origin.
    let origin = vkey.split('+').next().unwrap_or_default().to_owned();
    let view = api.plane.view(org).await?;
    // Entries have no gaps: of those that were removed, the first ones after them come.
    let from = range.from.max(numbers(&view).start);
    let before = from.saturating_add(i64::try_from(range.limit).unwrap_or(i64::MAX));
    let params = vec![json!(from), json!(before)];
    let request = SqlRequest { query: CANONICAL.to_owned(), params };
    let result = api.engine.query(view, request, Asker::ledger(None)).await?;
    Ok((origin, result.stream))
}

/// Hands the canonical bytes of each entry of a batch to `take`.
fn write_canonical(batch: &RecordBatch, origin: &str, mut take: impl FnMut(&[u8])) -> Result<(), String> {
    let columns = Columns::of(batch)?;
    let entries = entry::Columns::of(&columns.batch).map_err(|error| error.to_string())?;
    let mut line = Vec::with_capacity(1_024);
    for row in 0..columns.rows {
        let seq = columns.number("seq", row).and_then(|seq| u64::try_from(seq).ok()).ok_or("an entry has no seq")?;
        let prev_hash =
            columns.text("prev_hash", row).and_then(|hash| hash.parse().ok()).ok_or("an entry has no prev_hash")?;
        line.clear();
        entries.write_canonical(row, origin, seq, &prev_hash, &mut line).map_err(|error| error.to_string())?;
        take(&line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Range;

    #[test]
    fn canonical_entries_are_a_thousand_from_the_first_on_unless_it_says_otherwise() {
        assert_eq!(Range::parse("").unwrap(), Range { from: 0, limit: 1_000 });
        assert_eq!(Range::parse("from=7&limit=10000").unwrap(), Range { from: 7, limit: 10_000 });
        for bad in [
            "limit=0",
            "limit=10001",
            "from=-1",
            "from=%2B1",
            "from=x",
            "from=1&from=2",
            "seq=1",
            "from=9223372036854775808",
        ] {
            assert_eq!(Range::parse(bad).unwrap_err().code(), "invalid_parameter", "{bad}");
        }
    }
}
