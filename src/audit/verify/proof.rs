//! Makes the proof of one entry out of a ledger's files. Nothing is believed here either: the recipient checks it.

use super::checkpoints;
use super::coverage;
use super::rows;
use super::run::guarded;
use super::source::{Source, SourceError};
use super::{Fault, Kind, VerifyError, tiles};
use crate::audit::tile::{TileId, TileKind, Tiles, WIDTH, leaves};
use crate::audit::{Checkpoint, Hash, InclusionProof, tree};

/// The proof that entry `seq` is under the newest checkpoint, with the entry where it is still there; none where no
/// checkpoint covers it.
///
/// # Errors
/// [`VerifyError::NotSound`] when the ledger's files do not give a proof, [`VerifyError::CouldNot`] when one cannot be
/// read.
pub fn prove(source: &dyn Source, seq: u64) -> Result<Option<InclusionProof>, VerifyError> {
    let (note, head) = checkpoints::unverified(source)?;
    let index = seq / WIDTH as u64;
    let bundle = TileId::within(head.size, TileKind::Entries, index).filter(|_| seq < head.size);
    let Some(bundle) = bundle else { return Ok(None) };
    let mut tiles = Tiles::new(head.size);
    let ranges = tree::inclusion(seq, head.size);
    let needed: Vec<_> = tiles.needed(&ranges).into_iter().collect();
    let damaged = |id: TileId, why: &str| {
        let file = format!("tile/{id}");
        VerifyError::from(Fault { kind: Kind::DamagedTile, seq: Some(seq), file, why: why.to_owned() })
    };
    for (id, bytes) in needed.iter().zip(tiles::read(source, &needed)?) {
        let bytes = bytes.ok_or_else(|| damaged(*id, "it is missing"))?;
        tiles.insert(*id, &bytes).map_err(|error| damaged(*id, &error.to_string()))?;
    }
    let bytes = tiles::read(source, &[bundle])?.pop().flatten();
    // A bundle of removed entries may have gone with them.
    let bytes = bytes.ok_or_else(|| SourceError::new(format!("tile/{bundle}"), "it is not there"))?;
    let found = leaves(bundle, &bytes).map_err(|error| damaged(bundle, &error.to_string()))?;
    let leaf = usize::try_from(seq % WIDTH as u64).ok().and_then(|place| found.get(place)).copied();
    let note = String::from_utf8_lossy(&note).into_owned();
    let path = tiles.proof(&ranges);
    let proof = leaf.zip(path).and_then(|(leaf, path)| InclusionProof::new(&leaf, &path, head.size, &head.root, note));
    let proof =
        proof.ok_or_else(|| damaged(bundle, "the tiles do not lead from the entry to the checkpoint's root"))?;
    with_entry(source, &head, proof).map(Some)
}

/// Adds the entry, where a segment has it.
fn with_entry(source: &dyn Source, head: &Checkpoint, proof: InclusionProof) -> Result<InclusionProof, VerifyError> {
    for name in coverage::list(source)? {
        if !(name.first..=name.last).contains(&proof.seq) {
            continue;
        }
        // It may have been merged, or removed, since it was listed.
        let Some(blob) = source.open(&rows::path(name))? else { continue };
        let mut rows = guarded(name, || rows::open(name, blob, &head.origin))?;
        let Some(entry) = guarded(name, || rows::canonical(&mut rows, &head.origin, proof.seq))? else { continue };
        let (seq, found) = (proof.seq, Hash::of(&[&entry]));
        let changed = || {
            let why = format!("its columns hash to {found}, and its leaf has another entry_hash");
            Fault { kind: Kind::Changed, seq: Some(seq), file: rows::path(name), why }
        };
        return Ok(proof.with_entry(entry).ok_or_else(changed)?);
    }
    Ok(proof)
}
