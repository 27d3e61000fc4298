//! The pages of `docs` against the program: what a reader would look for is there, and what is to be typed works as it
//! stands.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use regex::Regex;
use tempfile::TempDir;

use crate::harness::{Config, mcpg, run};

fn text(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The sources in a folder and those below it.
fn sources(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap().map(Result::unwrap);
    let paths =
        entries.map(|entry| (entry.path().is_dir(), format!("{folder}/{}", entry.file_name().to_string_lossy())));
    let found = paths.flat_map(|(is_folder, path)| if is_folder { sources(&path) } else { vec![path] });
    found.filter(|path| path.ends_with(".rs")).collect()
}

/// The codes of problems in a source, without its tests.
fn codes_of(source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let made = Regex::new(r#"(?:(?:Problem|Self)::new\(\s*StatusCode::[A-Z_]+,|wait\()\s*"([a-z_0-9]+)""#).unwrap();
    let mut codes: BTreeSet<_> = made.captures_iter(source).map(|found| found[1].to_owned()).collect();
    let arm = Regex::new(r#"=> "([a-z_0-9]+)","#).unwrap();
    for function in source.split("fn code(&self)").skip(1) {
        let body = function.split("\n    }\n").next().unwrap_or_default();
        codes.extend(arm.captures_iter(body).map(|found| found[1].to_owned()));
    }
    codes
}

#[test]
fn every_code_of_a_problem_is_on_the_pages() {
    let mut codes = BTreeSet::new();
    let api = sources("src/api").into_iter().filter(|file| !file.ends_with("tests.rs"));
    let beside = ["src/ingest/error.rs", "src/ingest/key.rs", "src/query/error.rs"].map(str::to_owned);
    for file in api.chain(beside) {
        codes.extend(codes_of(&text(&file)));
    }
    assert!(codes.len() > 40, "only {} codes were found: {codes:?}", codes.len());
    let pages = text("docs/http-api.md") + &text("docs/sql.md") + &text("docs/access.md");
    let missing: Vec<_> = codes.iter().filter(|code| !pages.contains(&format!("`{code}`"))).collect();
    assert_eq!(missing, [""; 0], "codes that none of docs/http-api.md, sql.md and access.md names");
}

#[test]
fn every_route_is_in_the_table_of_routes() {
    let document: serde_json::Value = serde_json::from_str(&text("src/api/openapi.json")).unwrap();
    let page = text("docs/http-api.md");
    let is_route =
        |line: &&str| ["GET", "POST", "PUT", "DELETE"].iter().any(|method| line.starts_with(&format!("| `{method} /")));
    let table: Vec<&str> = page.lines().filter(is_route).collect();
    for (path, methods) in document["paths"].as_object().unwrap() {
        // Rows may share a beginning: `…/hold`.
        let last = path.rsplit('/').find(|part| !part.starts_with('{')).unwrap();
        for method in
            methods.as_object().unwrap().keys().filter(|key| ["get", "post", "delete"].contains(&key.as_str()))
        {
            let method = method.to_uppercase();
            let has = |row: &&&str| row.contains(&format!("`{method} ")) && row.contains(&format!("/{last}"));
            assert!(table.iter().any(|row| has(&row)), "docs/http-api.md has no row for {method} {path}");
        }
    }
}

/// The command of a page that begins with this.
fn command(page: &str, beginning: &str) -> String {
    let found = text(page).lines().find(|line| line.starts_with(beginning)).map(str::to_owned);
    found.unwrap_or_else(|| panic!("{page} has no line that begins with {beginning}"))
}

#[tokio::test]
async fn the_key_that_the_page_has_made_is_taken_and_its_verifier_key_is_had_without_a_server() {
    let folder = TempDir::new().unwrap();
    let made = run(Command::new("sh")
        .args(["-c", &command("docs/ledger.md", "(umask 077 && openssl")])
        .current_dir(folder.path()));
    assert!(made.status.success(), "{made:?}");
    let key = folder.path().join("ledger.key");
    let setting = format!("audit: {{ key_file: {} }}", key.display());
    let server = Config::new().with(&setting).start().await;
    let told = server.client().get("audit/vkey").await.ok().text();
    let file = folder.path().join("control-plane.yaml");
    std::fs::write(&file, &setting).unwrap();
    let offline = run(mcpg().args(["audit", "vkey", "--org", "default", "--config"]).arg(&file));
    assert!(offline.status.success(), "{offline:?}");
    assert_eq!(String::from_utf8_lossy(&offline.stdout).trim(), told.trim());
}
