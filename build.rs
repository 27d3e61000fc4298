//! Puts the dashboard into the binary: lists what `ui/build.sh` has left in `ui/dist` for `src/api/ui/files.rs` to
//! include.
//!
//! A file that was compressed there is included in that form alone. Where nothing was built the list is empty, and the
//! program says on `/` how to build it. The folder is always there, so that a build without the dashboard is not done
//! again and again for want of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=ui/dist");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("ui").join("dist");
    let mut files = Vec::new();
    if root.join("index.html").is_file() {
        walk(&root, &mut files)?;
    }
    files.sort();
    let mut list = String::from("&[\n");
    for file in &files {
        let Ok(path) = file.strip_prefix(&root) else { continue };
        let name = path.to_string_lossy().replace('\\', "/");
        let (name, gzip) = match name.strip_suffix(".gz") {
            Some(plain) => (plain.to_owned(), true),
            None if files.contains(&file.with_file_name(format!("{}.gz", base_name(file)))) => continue,
            None => (name, false),
        };
        // What cannot fail: writing into a text.
        let _ = writeln!(list, "    File {{ path: {name:?}, gzip: {gzip}, bytes: include_bytes!({file:?}) }},");
    }
    list.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("ui_files.rs");
    fs::write(out, list)
}

fn base_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Every file but the hidden ones.
fn walk(folder: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if base_name(&path).starts_with('.') {
            continue;
        }
        if path.is_dir() { walk(&path, out)? } else { out.push(path) }
    }
    Ok(())
}
