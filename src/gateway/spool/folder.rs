//! What the files of a spool are called; the whole tree of them is in the spool's module doc.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::LaneName;

/// Where segment `ordinal` of a lane's folder is.
pub(super) fn segment_path(folder: &Path, ordinal: u64) -> PathBuf {
    folder.join(format!("{ordinal:020}"))
}

/// Where a segment of a lane's folder is set aside.
pub(super) fn quarantine_path(folder: &Path, name: LaneName, ordinal: u64) -> PathBuf {
    let spool = folder.parent().unwrap_or(folder);
    spool.join("quarantine").join(format!("{}-{ordinal:020}", name.as_str()))
}

/// Where segment `ordinal` of a lane's folder is written with another header, before it takes its place.
pub(super) fn renewed_path(folder: &Path, ordinal: u64) -> PathBuf {
    folder.join(format!("{ordinal:020}.new"))
}

/// What a crash has left of segments that were to get another header.
///
/// # Errors
/// When the disk refuses.
pub(super) fn leftovers(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let all = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "new")).collect())
}

/// The highest number of a lane's segments in the quarantine.
///
/// # Errors
/// When the disk refuses.
pub(super) fn last_quarantined(quarantine: &Path, name: LaneName) -> io::Result<Option<u64>> {
    let mut last = None;
    for entry in fs::read_dir(quarantine)? {
        let file = entry?.file_name();
        let ordinal = file.to_str().and_then(|file| file.strip_prefix(name.as_str())?.strip_prefix('-')?.parse().ok());
        last = last.max(ordinal);
    }
    Ok(last)
}

/// The segments of a lane's folder in their order. Other names are not the spool's.
///
/// # Errors
/// When the disk refuses.
pub(super) fn segments(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.len() == 20
            && let Ok(ordinal) = name.parse::<u64>()
        {
            found.push((ordinal, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}
