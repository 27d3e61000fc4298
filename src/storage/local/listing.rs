//! Reading folders as listings of objects.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path as FsPath;
use std::time::UNIX_EPOCH;

use object_store::ObjectMeta;
use object_store::path::Path;

/// How deep folders are listed. Nothing of ours is deeper than ten; a link to a folder above would never end.
const MAX_DEPTH: usize = 32;

/// Reads folders.
#[derive(Debug)]
pub(super) struct Walk {
    recursive: bool,
    /// Files up to here are passed over, before it is asked what they are.
    after: Option<Path>,
    objects: Vec<ObjectMeta>,
    folders: Vec<Path>,
}

impl Walk {
    /// What is below `folder`, which is at `path` of the store, in order of path: all of it, or the files and folders
    /// in it alone; of the files those after `after`.
    pub(super) fn of(
        folder: &FsPath,
        path: &Path,
        recursive: bool,
        after: Option<Path>,
    ) -> io::Result<(Vec<ObjectMeta>, Vec<Path>)> {
        let mut walk = Self { recursive, after, objects: Vec::new(), folders: Vec::new() };
        walk.folder(folder, path, MAX_DEPTH)?;
        let Self { mut objects, mut folders, .. } = walk;
        objects.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        folders.sort_unstable();
        Ok((objects, folders))
    }

    /// Adds what is in `folder`, which is at `path` of the store. One that is not there, or is no folder, holds
    /// nothing.
    fn folder(&mut self, folder: &FsPath, path: &Path, depth: usize) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(location) = name.to_str().and_then(|name| object_path(path, name)) else { continue };
            let is_before = self.after.as_ref().is_some_and(|after| location <= *after);
            if is_before && entry.file_type().is_ok_and(|of| of.is_file()) {
                continue;
            }
            let file = folder.join(&name);
            let metadata = match fs::metadata(&file) {
                Ok(metadata) => metadata,
                // Gone meanwhile, or a symbolic link to nowhere.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if metadata.is_file() {
                self.objects.push(object_meta(location, &metadata)?);
            } else if metadata.is_dir() && !self.recursive {
                self.folders.push(location);
            } else if metadata.is_dir() && depth > 0 {
                self.folder(&file, &location, depth - 1)?;
            }
        }
        Ok(())
    }
}

/// The path of what is called `name` in a folder; none if no object can be.
fn object_path(folder: &Path, name: &str) -> Option<Path> {
    let staged = name.rsplit_once('#').is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if name.starts_with('.') || name.ends_with('~') || staged {
        return None;
    }
    let whole = if folder.as_ref().is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    Path::parse(&whole).ok().filter(|path| path.as_ref() == whole)
}

fn object_meta(location: Path, metadata: &Metadata) -> io::Result<ObjectMeta> {
    let modified = metadata.modified()?;
    let micros = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    Ok(ObjectMeta {
        location,
        last_modified: modified.into(),
        size: metadata.len(),
        // In the form that reads give it.
        e_tag: Some(format!("{:x}-{micros:x}-{:x}", metadata.ino(), metadata.len())),
        version: None,
    })
}
