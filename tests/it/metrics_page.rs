//! `docs/metrics.md` against what the programs serve: every family of both is named there, once, and no other.

use std::collections::BTreeSet;
use std::path::Path;

use crate::alerts::pages;

/// The names in the first cells of the page's tables, in their order.
fn named(page: &str) -> Vec<String> {
    let rows = page.lines().filter(|line| line.starts_with("| `mcpg_") || line.starts_with("| `process_"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2));
    names.map(str::to_owned).collect()
}

/// The families of a page of metrics.
fn families(page: &str) -> impl Iterator<Item = String> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_of_both_programs_is_on_the_page_once_and_no_other() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let named = named(&page);
    let once: BTreeSet<String> = named.iter().cloned().collect();
    let twice: Vec<_> = once.iter().filter(|name| named.iter().filter(|other| other == name).count() > 1).collect();
    assert_eq!(twice, [""; 0], "named more than once");
    let served: BTreeSet<String> = pages().await.iter().flat_map(|(_, page)| families(page)).collect();
    assert_eq!(served.difference(&once).collect::<Vec<_>>(), [""; 0], "served, and not on the page");
    assert_eq!(once.difference(&served).collect::<Vec<_>>(), [""; 0], "on the page, and not served");
}
