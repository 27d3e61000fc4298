//! A ledger in one file: a tar archive of `checkpoint`, `checkpoints/…`, `segments/…` and `tile/…`, in this order, as
//! they lie on the store under `orgs/<org>/audit/`. Times and owners are left out, so that the same ledger gives the
//! same bytes.
//!
//! A bundle is of one checkpoint, the greater of `checkpoint` and the kept ones, which becomes its `checkpoint`: it has
//! the checkpoints up to that one, the segments that are there, and of the tiles the ones that are of that checkpoint's
//! tree. A partial tile that has gone since is written as the beginning of the full one.

use std::io::{self, Read, Write};

use tar::{Builder, Header};

use super::checkpoints::{self, NEWEST};
use super::coverage::Coverage;
use super::source::{Source, SourceError};
use super::{Progress, VerifyError, rows, tiles};
use crate::audit::tile::{TileId, TileKind};

/// Files that are read at once.
const AT_ONCE: usize = 64;

/// What a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Whose ledger it is of.
    pub origin: String,
    /// How many entries its checkpoint covers.
    pub size: u64,
    /// Files in it.
    pub files: u64,
}

struct Bundle<W: Write> {
    tar: Builder<W>,
    files: u64,
}

impl<W: Write> Bundle<W> {
    fn add(&mut self, path: &str, length: u64, bytes: impl Read) -> Result<(), SourceError> {
        let mut header = Header::new_ustar();
        header.set_size(length);
        header.set_mode(0o644);
        self.files += 1;
        self.tar.append_data(&mut header, path, bytes).map_err(|error| SourceError::new(path, error))
    }
}

/// Writes a bundle of the ledger in `source` to `out`. It is not verified here: the recipient does that.
///
/// # Errors
/// When a file cannot be read or the bundle not be written, or the ledger has no checkpoint, or lacks entries or tiles
/// of it.
pub fn export(source: &dyn Source, out: impl Write, progress: &Progress<'_>) -> Result<Exported, VerifyError> {
    let kept = checkpoints::list(source)?;
    let (newest, head) = checkpoints::unverified(source)?;
    let mut bundle = Bundle { tar: Builder::new(out), files: 0 };
    bundle.add(NEWEST, newest.len() as u64, newest.as_ref())?;
    let kept: Vec<_> = kept.into_iter().filter(|size| *size <= head.size).collect();
    for some in kept.chunks(AT_ONCE) {
        let paths: Vec<_> = some.iter().map(|size| checkpoints::path(*size)).collect();
        for (path, bytes) in paths.iter().zip(source.read(&paths)?) {
            let Some(bytes) = bytes else { continue };
            bundle.add(path, bytes.len() as u64, bytes.as_ref())?;
        }
    }
    let first_kept = segments(source, &mut bundle, head.size, progress)?;
    for kind in (0..8).map(TileKind::Hashes).chain([TileKind::Entries]) {
        let ids: Vec<_> = (0..).map_while(|index| TileId::within(head.size, kind, index)).collect();
        for some in ids.chunks(AT_ONCE) {
            for (id, bytes) in some.iter().zip(tiles::read(source, some)?) {
                let path = format!("tile/{id}");
                match bytes {
                    Some(bytes) => bundle.add(&path, bytes.len() as u64, bytes.as_ref())?,
                    // Bundles of removed entries may have gone with them.
                    None if kind == TileKind::Entries && (id.index + 1).saturating_mul(256) <= first_kept => {}
                    None => return Err(SourceError::new(path, "it is missing").into()),
                }
            }
        }
    }
    let finish = |error: io::Error| SourceError::new("the bundle", error);
    bundle.tar.into_inner().and_then(|mut out| out.flush()).map_err(finish)?;
    Ok(Exported { origin: head.origin, size: head.size, files: bundle.files })
}

/// Adds the segments; gives the first entry that is in one.
fn segments<W: Write>(
    source: &dyn Source,
    bundle: &mut Bundle<W>,
    size: u64,
    progress: &Progress<'_>,
) -> Result<u64, VerifyError> {
    let mut coverage = Coverage::find(source, 0)?;
    let first_kept = coverage.wide.first().map_or(0, |name| name.first);
    let mut next = 0;
    while let Some(name) = coverage.wide.iter().find(|name| name.last >= next).copied() {
        let path = rows::path(name);
        let Some(blob) = source.open(&path)? else {
            // It has been merged since it was listed. What covers it holds entries that are in the bundle already; a
            // verifier takes the wider one for what counts, and compares the parts with it.
            let found = Coverage::find(source, next)?;
            if found == coverage || !found.wide.iter().any(|wide| wide.holds(name)) {
                return Err(SourceError::new(path, "it went away while the bundle was made").into());
            }
            coverage = found;
            continue;
        };
        bundle.add(&path, blob.length(), blob.reader())?;
        next = name.last + 1;
        progress(next.min(size), size);
    }
    Ok(first_kept)
}
