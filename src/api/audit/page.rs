//! Which page of a ledger is asked for: filters, order, limit and cursor, and the statement that finds it.
//!
//! A cursor is `<order>:<seq of the last entry>` in base64url. It is a place in the ledger and nothing else, so it does
//! not expire, and pages that are fetched while entries keep arriving hold each entry once.
//!
//! A page is looked for in windows of the ledger, each [`GROWTH`] times as wide as the one before: most pages are full
//! after the first, and all other segments stay closed.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};

use crate::api::Problem;
use crate::ingest::is_action;
use crate::model::Decision;
use crate::query::SqlRequest;

const NEWEST_FIRST: &str = include_str!("../../../queries/audit_newest_first.sql");
const OLDEST_FIRST: &str = include_str!("../../../queries/audit_oldest_first.sql");

/// Entries of a page by default, and at most.
const LIMIT: u64 = 100;
const MOST: u64 = 1_000;
/// Entries of the first window, and how many times as wide each window is as the one before.
const FIRST_WINDOW: i64 = 16_384;
const GROWTH: i64 = 16;

/// A page that is asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    /// The values of the statement's filters, in its order; null where none is given.
    filters: [Value; 9],
    oldest_first: bool,
    pub(super) limit: u64,
    /// The last entry of the page before.
    after: Option<i64>,
}

/// The parameters that filter, in the order of the statement.
const FILTERS: [&str; 9] =
    ["action", "action_prefix", "actor", "workspace", "instance", "decision", "request_id", "since", "until"];

impl Page {
    pub(super) fn parse(query: &str) -> Result<Self, Problem> {
        let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail);
        let mut page = Self { filters: FILTERS.map(|_| Value::Null), oldest_first: false, limit: LIMIT, after: None };
        let mut seen = Vec::new();
        let mut cursor = None;
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if seen.contains(&name) {
                return Err(invalid(format!("{name} is given twice")));
            }
            match &*name {
                // An empty filter counts as not given: forms send those.
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

    /// The windows of the ledger in which the page is looked for, in its order.
    pub(super) fn windows(&self, all: std::ops::Range<i64>) -> impl Iterator<Item = std::ops::Range<i64>> {
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
    pub(super) fn request(&self, window: std::ops::Range<i64>, rows: u64) -> SqlRequest {
        let query = if self.oldest_first { OLDEST_FIRST } else { NEWEST_FIRST };
        let mut params = self.filters.to_vec();
        params.extend([json!(window.start), json!(window.end), json!(rows)]);
        SqlRequest { query: query.to_owned(), params }
    }

    pub(super) fn cursor(&self, seq: i64) -> String {
        let order = if self.oldest_first { "asc" } else { "desc" };
        BASE64_URL_SAFE_NO_PAD.encode(format!("{order}:{seq}"))
    }
}

/// Whether the cursor is of the order oldest first, and the `seq` of the last entry before it.
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Page, decode_cursor};

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
