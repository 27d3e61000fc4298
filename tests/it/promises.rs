//! `docs/promises.md` names, for each promise that the project makes, the tests that fail when it is broken. Here: each
//! of them is there, and no promise of README, ARCHITECTURE and the operations page is without a row.

use std::collections::BTreeSet;
use std::path::Path;

/// A row of a table: the promise, and what stands in its last column.
#[derive(Debug)]
struct Row {
    promise: String,
    tests: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The rows of all tables of the page, but for their heads.
fn rows() -> Vec<Row> {
    let page = text("docs/promises.md");
    let is_row = |line: &&str| line.starts_with('|') && !line.starts_with("|---") && !line.starts_with("| promise");
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let named = cells[cells.len() - 1].split('`').skip(1).step_by(2).map(str::to_owned);
        Row { promise: cells[0].to_owned(), tests: named.collect() }
    };
    page.lines().filter(is_row).map(row).collect()
}

/// Every test function, by its module's path and its name: `ledger::tamper::every_change…`, `storage::local::of_two…`.
fn all_tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["tests/it", "src"] {
        collect(&root().join(folder), "", &mut found);
    }
    found
}

fn collect(folder: &Path, module: &str, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() {
            collect(&path, &format!("{module}{name}::"), found);
        } else if let Some(stem) = name.strip_suffix(".rs") {
            let module = if stem == "mod" { module.to_owned() } else { format!("{module}{stem}::") };
            found.extend(tests_of(&std::fs::read_to_string(&path).unwrap()).map(|test| format!("{module}{test}")));
        }
    }
}

/// The names of the functions that stand under a test's attribute; property tests have it too.
fn tests_of(source: &str) -> impl Iterator<Item = &str> {
    let mut is_test = false;
    source.lines().filter_map(move |line| {
        let line = line.trim_start();
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
            return None;
        }
        let name = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
        std::mem::take(&mut is_test).then(|| name.split('(').next().unwrap_or(name))
    })
}

#[test]
fn every_promise_names_tests_and_each_of_them_is_there() {
    let tests = all_tests();
    assert!(tests.len() > 500, "only {} tests were found", tests.len());
    let rows = rows();
    assert!(rows.len() > 20, "only {} rows were found", rows.len());
    for Row { promise, tests: named } in rows {
        assert!(!named.is_empty(), "no test is named for: {promise}");
        for test in named {
            assert!(tests.contains(&test), "there is no test {test}, named for: {promise}");
        }
    }
}

#[test]
fn no_promise_is_without_a_row() {
    let rows = rows();
    let has_row = |promise: &str| rows.iter().any(|row| row.promise.contains(promise));
    // README's are the bold words of its list, ARCHITECTURE's its invariants.
    let readme = text("README.md");
    let list = readme.split("## What you can rely on").nth(1).unwrap().split("\n## ").next().unwrap();
    let bold: Vec<_> = list.lines().filter_map(|line| line.strip_prefix("- **")?.split("**").next()).collect();
    assert!(bold.len() >= 8, "{bold:?}");
    for promise in bold {
        assert!(has_row(promise.trim_end_matches('.')), "README promises, and docs/promises.md has no row: {promise}");
    }
    let architecture = text("ARCHITECTURE.md");
    let invariants: Vec<_> =
        architecture.lines().filter_map(|line| line.strip_prefix("- **I")?.split("**").next()).collect();
    assert!(invariants.len() >= 8, "{invariants:?}");
    for invariant in invariants {
        assert!(
            has_row(&format!("**I{invariant}**")),
            "ARCHITECTURE has I{invariant}, and docs/promises.md has no row"
        );
    }
}

#[test]
fn a_tests_attribute_and_name_are_found_where_they_are() {
    let source = "fn helper() {}\n#[test]\nfn one() {}\n    #[tokio::test(flavor = \"multi_thread\")]\n    async fn two() {}\nfn three() {}";
    assert_eq!(tests_of(source).collect::<Vec<_>>(), ["one", "two"]);
}
