//! Reads a list of a server, page after page.
//!
//! A server may give a cursor that it gave before, or ever new ones. So a cursor that comes again ends the list, and
//! pages, entries and bytes are bounded; the log says which it was. What was read until then is the list, each name
//! once.

use std::collections::HashSet;

use async_trait::async_trait;

use super::lists::{Item, ListKind, Listing};
use super::{UpstreamError, http::metadata};
use crate::gateway::message::Json;

/// Pages and entries that are read of one list.
const MAX_PAGES: usize = 100;
const MAX_ITEMS: usize = 10_000;

/// Members of an entry; one with more is left out.
const MAX_MEMBERS: usize = 1_024;

/// Where pages come from.
#[async_trait]
pub(super) trait Pages: Send + Sync {
    /// The page at a cursor; none: the first.
    async fn page(&self, cursor: Option<&Json>) -> Result<Json, UpstreamError>;
}

/// What a list is read for.
pub(super) struct Reading<'a> {
    pub(super) plugin: &'a str,
    pub(super) kind: ListKind,
    /// The most bytes of all entries together.
    pub(super) max_bytes: u64,
    /// Tools whose schema says wrongly what goes into headers are left out.
    pub(super) checks_headers: bool,
}

/// Reads a list to its end.
pub(super) async fn read_all(reading: &Reading<'_>, pages: &dyn Pages) -> Result<Listing, UpstreamError> {
    let mut listing = Listing { items: Vec::new(), ttl_ms: None, public: true };
    let (mut seen, mut names, mut bytes, mut cursor) = (HashSet::new(), HashSet::new(), 0_u64, None);
    for number in 0.. {
        let page = pages.page(cursor.as_ref()).await?;
        let page = page.object().ok_or(UpstreamError::NotMcp)?;
        let ttl = page.get("ttlMs").and_then(Json::read::<u64>);
        listing.ttl_ms = if number == 0 { ttl } else { listing.ttl_ms.min(ttl) };
        listing.public &= page.text("cacheScope").is_some_and(|scope| scope == "public");
        let left = MAX_ITEMS.saturating_sub(listing.items.len()).saturating_add(1);
        for raw in page.get(reading.kind.member()).map(|list| list.first_items(left)).unwrap_or_default() {
            bytes = bytes.saturating_add(raw.len() as u64);
            if listing.items.len() >= MAX_ITEMS || bytes > reading.max_bytes {
                return Ok(cut(reading, listing, "it is too long"));
            }
            // What comes again is the same entry, or could not be distinguished from it.
            listing.items.extend(item(reading, raw).filter(|item| names.insert(item.name.clone())));
        }
        let next = page.get("nextCursor").filter(|next| next.as_text().is_some());
        let Some(next) = next.cloned() else { return Ok(listing) };
        if number + 1 >= MAX_PAGES {
            return Ok(cut(reading, listing, "it has too many pages"));
        }
        if !seen.insert(next.bytes()) {
            return Ok(cut(reading, listing, "its cursors go in a circle"));
        }
        cursor = Some(next);
    }
    Ok(listing)
}

fn cut(reading: &Reading<'_>, listing: Listing, why: &str) -> Listing {
    let (plugin, method) = (reading.plugin, reading.kind.method());
    tracing::warn!(plugin, method, entries = listing.items.len(), "the plugin's list is cut off: {why}");
    listing
}

/// An entry, if it has what it is called by.
fn item(reading: &Reading<'_>, raw: Json) -> Option<Item> {
    let members = raw.has_at_most(MAX_MEMBERS).then(|| raw.object())??;
    let name: Box<str> = members.text(reading.kind.named_by())?.into();
    if reading.checks_headers && reading.kind == ListKind::Tools {
        let schema = members.get("inputSchema").and_then(Json::value).unwrap_or_default();
        if let Err(error) = metadata::param_headers(&schema) {
            tracing::warn!(
                plugin = reading.plugin,
                tool = &*name.chars().take(128).collect::<String>(),
                %error,
                "a tool is not offered: its inputSchema is not valid"
            );
            return None;
        }
    }
    Some(Item { name, raw })
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::{MAX_PAGES, Pages, Reading, read_all};
    use crate::gateway::message::Json;
    use crate::gateway::upstream::{ListKind, Listing, UpstreamError};

    /// A server that answers by the number of the page, and what it was asked.
    struct Server<F>(F, Mutex<Vec<Option<String>>>);

    #[async_trait]
    impl<F: Fn(usize) -> Value + Send + Sync> Pages for Server<F> {
        async fn page(&self, cursor: Option<&Json>) -> Result<Json, UpstreamError> {
            let mut asked = self.1.lock();
            asked.push(cursor.map(|cursor| cursor.as_text().unwrap().into_owned()));
            Ok(Json::of(&self.0(asked.len())))
        }
    }

    async fn read(page: impl Fn(usize) -> Value + Send + Sync, max_bytes: u64) -> (Listing, usize) {
        let server = Server(page, Mutex::default());
        let reading = Reading { plugin: "p", kind: ListKind::Tools, max_bytes, checks_headers: true };
        let listing = read_all(&reading, &server).await.unwrap();
        let pages = server.1.lock().len();
        (listing, pages)
    }

    fn tool(number: usize) -> Value {
        json!({ "name": format!("t{number}"), "inputSchema": {} })
    }

    #[tokio::test]
    async fn all_pages_are_read_and_the_shortest_ttl_counts() {
        let page = |number| match number {
            1 => json!({"tools": [tool(1)], "nextCursor": "", "ttlMs": 500, "cacheScope": "public"}),
            2 => json!({"tools": [tool(2), {"no": "name"}], "nextCursor": "b", "ttlMs": 100, "cacheScope": "private"}),
            _ => json!({"tools": [tool(3)], "nextCursor": null, "ttlMs": 900, "cacheScope": "public"}),
        };
        let (listing, pages) = read(page, 1_000).await;
        let names: Vec<_> = listing.items.iter().map(|item| &*item.name).collect();
        assert_eq!((names, pages), (vec!["t1", "t2", "t3"], 3), "an empty cursor is one");
        assert_eq!((listing.ttl_ms, listing.public), (Some(100), false));
    }

    #[tokio::test]
    async fn cursors_that_stay_or_go_in_a_circle_end_the_list() {
        let (listing, pages) = read(|number| json!({"tools": [tool(number)], "nextCursor": "same"}), 10_000).await;
        assert_eq!((listing.items.len(), pages), (2, 2));
        let circle = |number: usize| json!({"tools": [tool(number)], "nextCursor": format!("c{}", number % 3)});
        let (listing, pages) = read(circle, 10_000).await;
        assert_eq!((listing.items.len(), pages), (4, 4));
        let (listing, _) = read(|_| json!({"tools": [tool(1), tool(1)], "nextCursor": "same"}), 10_000).await;
        assert_eq!(listing.items.len(), 1, "a name is there once");
    }

    #[tokio::test]
    async fn a_list_without_end_is_cut_off() {
        let endless = |number: usize| json!({"tools": [tool(number)], "nextCursor": format!("c{number}")});
        assert_eq!(read(endless, u64::MAX).await.1, MAX_PAGES);
        assert!(read(endless, 200).await.1 < 10, "by its bytes");
    }

    #[tokio::test]
    async fn a_tool_with_an_invalid_schema_is_left_out() {
        let broken =
            json!({"name": "b", "inputSchema": {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}}});
        let (listing, _) = read(|_| json!({"tools": [tool(1), broken, tool(2)]}), 10_000).await;
        assert_eq!(listing.items.len(), 2);
    }
}
