//! `/v1/orgs/{org}/audit`: events in, entries out.
//!
//! `POST` takes events as `invocations` takes samples. `GET` gives a page of the ledger. A cursor is a place in the
//! ledger and nothing else: entries are numbered once and for all, so pages that are fetched while entries keep
//! arriving hold each entry once. `GET canonical` gives entries as they were hashed, one a line. What a verifier reads,
//! heads, tiles, segments and proofs, is in `ledger`.

use std::sync::Arc;

use arrow::array::{Array, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::intake::{self, Accepted};
use super::who::Who;
use super::{Api, Problem};
use crate::audit::entry;
use crate::ingest::{RowKind, is_action};
use crate::model::{Decision, OrgName, Role};
use crate::query::{Asker, OrgView, QueryError, SqlRequest};

const NEWEST_FIRST: &str = include_str!("../../queries/audit_newest_first.sql");
const OLDEST_FIRST: &str = include_str!("../../queries/audit_oldest_first.sql");
const CANONICAL: &str = include_str!("../../queries/audit_canonical.sql");

/// Entries of a page, if nothing else is asked for, and at most.
const LIMIT: u64 = 100;
const MOST: u64 = 1_000;
/// Entries that a page is looked for in first, and how many times as many it is looked for in each time after that.
const FIRST_WINDOW: i64 = 16_384;
const GROWTH: i64 = 16;
/// Canonical entries of an answer at most: they are streamed, and none is held for long.
const MOST_CANONICAL: u64 = 10_000;

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
        // Readers of ledgers have places of their own, so that a page waits for nobody's statement.
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
fn numbers(view: &OrgView) -> std::ops::Range<i64> {
    let files = view.audit.files.iter().filter_map(|file| file.seq_range);
    let live = view.audit.live.iter().filter_map(|batch| {
        let numbers = batch.column_by_name("seq")?.as_primitive_opt::<Int64Type>()?.values();
        numbers.first().copied().zip(numbers.last().copied())
    });
    let all = files.chain(live).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    all.map_or(0..0, |(first, last)| first..last.saturating_add(1))
}

/// Gives entries as they were hashed, one a line: `sha256sum` of a line without its end is the entry's hash.
pub(super) async fn canonical(
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
pub(super) async fn canonical_entry(api: &Api, org: &OrgName, seq: u64) -> Result<Option<Vec<u8>>, Problem> {
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
            None => MOST,
            Some(text) => number(&text)
                .filter(|limit| (1..=MOST_CANONICAL).contains(limit))
                .ok_or_else(|| invalid(format!("limit is a number from 1 to {MOST_CANONICAL}")))?,
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

/// What is asked for.
#[derive(Debug, PartialEq)]
struct Page {
    /// The values of the statement's filters, in its order; null where there is none.
    filters: [Value; 9],
    oldest_first: bool,
    limit: u64,
    /// The last entry of the page before.
    after: Option<i64>,
}

/// The parameters that filter, in the order of the statement.
const FILTERS: [&str; 9] =
    ["action", "action_prefix", "actor", "workspace", "instance", "decision", "request_id", "since", "until"];

impl Page {
    fn parse(query: &str) -> Result<Self, Problem> {
        let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail);
        let mut page = Self { filters: FILTERS.map(|_| Value::Null), oldest_first: false, limit: LIMIT, after: None };
        let mut seen = Vec::new();
        let mut cursor = None;
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if seen.contains(&name) {
                return Err(invalid(format!("{name} is given twice")));
            }
            match &*name {
                // A filter that is given and empty is as none: forms send those.
                _ if value.is_empty() => {}
                "order" => match &*value {
                    "desc" => page.oldest_first = false,
                    "asc" => page.oldest_first = true,
                    _ => return Err(invalid("order is asc or desc".to_owned())),
                },
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MOST).contains(limit));
                    page.limit = limit.ok_or_else(|| invalid(format!("limit is a number from 1 to {MOST}")))?;
                }
                "cursor" => cursor = Some(value.into_owned()),
                "decision" => {
                    let known = Decision::ALL.map(Decision::as_str);
                    if !known.contains(&&*value) {
                        return Err(invalid(format!("no decision is called so; there are {}", known.join(", "))));
                    }
                    page.filter(&name, json!(value));
                }
                "action" if !is_action(&value) => {
                    let advice = "action is dotted words in lower case, like tool.permit; action_prefix takes the beginning of one";
                    return Err(invalid(advice.to_owned()));
                }
                "since" | "until" => page.filter(&name, json!(time(&name, &value).map_err(invalid)?)),
                _ if FILTERS.contains(&&*name) => page.filter(&name, json!(value)),
                _ => {
                    let known = FILTERS.join(", ");
                    return Err(invalid(format!("no such parameter; there are {known}, order, limit and cursor")));
                }
            }
            seen.push(name);
        }
        if let Some(cursor) = cursor {
            let (oldest_first, after) = decode_cursor(&cursor).ok_or_else(|| {
                Problem::new(
                    StatusCode::BAD_REQUEST,
                    "invalid_cursor",
                    "cursor is not one of next_cursor of this ledger",
                )
            })?;
            if oldest_first != page.oldest_first {
                let detail = "the cursor is of the other order; send the same order with every page";
                return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_cursor", detail));
            }
            page.after = Some(after);
        }
        Ok(page)
    }

    fn filter(&mut self, name: &str, value: Value) {
        if let Some(place) = FILTERS.iter().position(|known| *known == name)
            && let Some(slot) = self.filters.get_mut(place)
        {
            *slot = value;
        }
    }

    /// The entries in which the page is looked for, a few first and ever more: most pages are full by then, and all
    /// other segments stay closed.
    fn windows(&self, all: std::ops::Range<i64>) -> impl Iterator<Item = std::ops::Range<i64>> {
        let oldest_first = self.oldest_first;
        let mut left = match self.after {
            Some(after) if oldest_first => all.start.max(after.saturating_add(1))..all.end,
            Some(after) => all.start..all.end.min(after),
            None => all,
        };
        let mut width = FIRST_WINDOW;
        std::iter::from_fn(move || {
            if left.is_empty() {
                return None;
            }
            let window = if oldest_first {
                left.start..left.end.min(left.start.saturating_add(width))
            } else {
                left.start.max(left.end.saturating_sub(width))..left.end
            };
            if oldest_first {
                left.start = window.end
            } else {
                left.end = window.start
            }
            width = width.saturating_mul(GROWTH);
            Some(window)
        })
    }

    /// The statement, over the entries of a window.
    fn request(&self, window: std::ops::Range<i64>, rows: u64) -> SqlRequest {
        let query = if self.oldest_first { OLDEST_FIRST } else { NEWEST_FIRST };
        let mut params = self.filters.to_vec();
        params.extend([json!(window.start), json!(window.end), json!(rows)]);
        SqlRequest { query: query.to_owned(), params }
    }

    fn cursor(&self, seq: i64) -> String {
        let order = if self.oldest_first { "asc" } else { "desc" };
        BASE64_URL_SAFE_NO_PAD.encode(format!("{order}:{seq}"))
    }
}

/// Whether the cursor is of the oldest first, and the last entry before.
fn decode_cursor(cursor: &str) -> Option<(bool, i64)> {
    let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (order, seq) = text.split_once(':')?;
    let oldest_first = match order {
        "asc" => true,
        "desc" => false,
        _ => return None,
    };
    Some((oldest_first, seq.parse().ok().filter(|seq| *seq >= 0)?))
}

/// A time as the statement takes it.
fn time(name: &str, text: &str) -> Result<String, String> {
    // A + of a time zone that was not escaped comes as a space.
    let parsed = DateTime::parse_from_rfc3339(&text.replace(' ', "+"));
    let time = parsed.map_err(|_| format!("{name} is not an RFC 3339 date-time such as 2026-01-31T12:00:00Z"))?;
    Ok(time.to_utc().to_rfc3339_opts(SecondsFormat::Micros, true))
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    entries: Vec<Entry<'a>>,
    next_cursor: Option<String>,
}

/// An entry as it is shown; what it does not have is left out.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    seq: i64,
    event_id: &'a str,
    occurred_at: String,
    recorded_at: String,
    #[serde(flatten)]
    texts: Texts<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_ids: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    obligations: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    emitter_seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a RawValue>,
    salt: &'a str,
    prev_hash: &'a str,
    entry_hash: &'a str,
}

/// The columns that are plain texts, those that are not null.
#[derive(Debug)]
struct Texts<'a>(Vec<(&'static str, &'a str)>);

impl Serialize for Texts<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

const TEXTS: [&str; 11] = [
    "actor",
    "action",
    "target",
    "decision",
    "reason",
    "workspace",
    "instance",
    "request_id",
    "trace_id",
    "span_id",
    "invocation_id",
];

/// A batch of entries by column.
struct Columns {
    batch: RecordBatch,
    rows: usize,
}

impl Columns {
    /// The columns, strings as plain strings.
    fn of(batch: &RecordBatch) -> Result<Self, String> {
        let schema = batch.schema();
        let plain = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            let plain = match field.data_type() {
                DataType::Utf8View | DataType::LargeUtf8 => {
                    cast(column, &DataType::Utf8).map_err(|error| error.to_string())?
                }
                DataType::List(_) => {
                    cast(column, &DataType::new_list(DataType::Utf8, true)).map_err(|error| error.to_string())?
                }
                _ => Arc::clone(column),
            };
            Ok::<_, String>((field.name().as_str(), plain, true))
        });
        let batch = RecordBatch::try_from_iter_with_nullable(plain.collect::<Result<Vec<_>, _>>()?);
        let batch = batch.map_err(|error| error.to_string())?;
        Ok(Self { rows: batch.num_rows(), batch })
    }

    fn text(&self, name: &str, row: usize) -> Option<&str> {
        let texts = self.batch.column_by_name(name)?.as_string_opt::<i32>()?;
        texts.is_valid(row).then(|| texts.value(row))
    }

    fn number(&self, name: &str, row: usize) -> Option<i64> {
        let numbers = self.batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()?;
        numbers.is_valid(row).then(|| numbers.value(row))
    }

    fn time(&self, name: &str, row: usize) -> Option<String> {
        let times = self.batch.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>()?;
        let time = times.is_valid(row).then(|| times.value(row)).and_then(DateTime::from_timestamp_micros)?;
        Some(time.to_rfc3339_opts(SecondsFormat::Micros, true))
    }

    fn list(&self, name: &str, row: usize) -> Option<Vec<String>> {
        let lists = self.batch.column_by_name(name)?.as_list_opt::<i32>()?;
        if lists.is_null(row) {
            return None;
        }
        let items = lists.value(row);
        let items = items.as_any().downcast_ref::<StringArray>()?;
        Some(items.iter().map(|item| item.unwrap_or_default().to_owned()).collect())
    }

    fn entry(&self, row: usize) -> Result<Entry<'_>, String> {
        let lacks = |name: &'static str| format!("an entry has no {name}");
        let text = |name: &'static str| self.text(name, row).ok_or_else(|| lacks(name));
        let time = |name: &'static str| self.time(name, row).ok_or_else(|| lacks(name));
        let detail = self.text("detail", row).map(serde_json::from_str).transpose();
        Ok(Entry {
            seq: self.number("seq", row).ok_or_else(|| lacks("seq"))?,
            event_id: text("event_id")?,
            occurred_at: time("occurred_at")?,
            recorded_at: time("recorded_at")?,
            texts: Texts(TEXTS.iter().filter_map(|name| Some((*name, self.text(name, row)?))).collect()),
            policy_ids: self.list("policy_ids", row),
            obligations: self.list("obligations", row),
            emitter_seq: self.number("emitter_seq", row),
            detail: detail.map_err(|error| format!("the detail of an entry is not JSON: {error}"))?,
            salt: text("salt")?,
            prev_hash: text("prev_hash")?,
            entry_hash: text("entry_hash")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Page, Range, decode_cursor};

    #[test]
    fn a_page_is_a_hundred_entries_newest_first_unless_it_says_otherwise() {
        let page = Page::parse("").unwrap();
        assert_eq!((page.limit, page.oldest_first, page.after), (100, false, None));
        let page = Page::parse("order=asc&limit=1000").unwrap();
        assert_eq!((page.limit, page.oldest_first), (1000, true));
    }

    #[test]
    fn filters_take_their_places_and_empty_ones_are_none() {
        let page = Page::parse("actor=user%3Aalice&decision=&since=2026-01-01T01:00:00%2B01:00").unwrap();
        assert_eq!(page.filters[2], json!("user:alice"));
        assert_eq!(page.filters[5], Value::Null);
        assert_eq!(page.filters[7], json!("2026-01-01T00:00:00.000000Z"));
    }

    #[test]
    fn a_cursor_is_a_place_in_its_order() {
        let page = Page::parse("order=asc").unwrap();
        let cursor = page.cursor(41);
        assert_eq!(decode_cursor(&cursor), Some((true, 41)));
        assert_eq!(Page::parse(&format!("order=asc&cursor={cursor}")).unwrap().after, Some(41));
        assert_eq!(Page::parse(&format!("cursor={cursor}")).unwrap_err().code(), "invalid_cursor");
        assert_eq!(Page::parse("cursor=x").unwrap_err().code(), "invalid_cursor");
    }

    #[test]
    fn windows_are_looked_through_in_the_order_of_the_page_and_leave_none_out() {
        for (query, first) in [("", 4_000_000 - 16_384..4_000_000), ("order=asc", 7..7 + 16_384)] {
            let page = Page::parse(query).unwrap();
            let windows: Vec<_> = page.windows(7..4_000_000).collect();
            assert_eq!(windows[0], first);
            assert!(windows.len() <= 4, "{windows:?}");
            let mut sorted = windows.clone();
            if !page.oldest_first {
                sorted.reverse();
            }
            assert!(sorted.windows(2).all(|pair| pair[0].end == pair[1].start), "{windows:?}");
            assert_eq!((sorted[0].start, sorted.last().unwrap().end), (7, 4_000_000));
        }
        let after = |oldest_first, after| {
            let page = Page { oldest_first, after: Some(after), ..Page::parse("").unwrap() };
            page.windows(7..100).collect::<Vec<_>>()
        };
        assert!(after(false, 50).into_iter().eq(std::iter::once(7..50)));
        assert!(after(true, 50).into_iter().eq(std::iter::once(51..100)));
        for nothing in [after(false, 7), after(false, 0), after(true, 99), after(true, i64::MAX)] {
            assert!(nothing.is_empty(), "{nothing:?}");
        }
        assert_eq!(Page::parse("").unwrap().windows(0..0).count(), 0);
    }

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

    #[test]
    fn what_is_no_parameter_or_no_value_of_it_is_refused() {
        for bad in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "order=up",
            "since=today",
            "actr=x",
            "actor=a&actor=b",
            "decision=denied",
            "decision=PERMIT",
            "action=tool_permit",
            "action=Tool.Permit",
        ] {
            assert_eq!(Page::parse(bad).unwrap_err().code(), "invalid_parameter", "{bad}");
        }
        for good in ["decision=permit_with_obligations", "decision=deny", "action=tool.permit", "action_prefix=tool"] {
            Page::parse(good).unwrap();
        }
    }
}
