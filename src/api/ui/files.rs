//! The dashboard's files, as `build.rs` lists them.

/// A file of the dashboard.
#[derive(Debug)]
pub(super) struct File {
    /// Its path under `ui/dist`.
    pub(super) path: &'static str,
    /// Whether `bytes` are compressed.
    pub(super) gzip: bool,
    /// What it holds.
    pub(super) bytes: &'static [u8],
}

/// All files; none where the page was not built.
pub(super) static FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/ui_files.rs"));

/// The file of that path.
pub(super) fn find(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}
