//! Checkpoints elsewhere: each new checkpoint is handed to a witness, which cosigns it, and copied to a second store,
//! the mirror; so that an attacker who takes the first store cannot roll a ledger back unseen.
//!
//! It runs in the background: nothing waits for it but the shutdown of the process, and that not for long. A checkpoint
//! that cannot be handed on is tried again; a newer one takes its place. The node that signed a checkpoint hands it on;
//! another one takes over when nothing comes of that.
//!
//! The witness's signature becomes a further line of the note, on the newest checkpoint and on the copy that is kept by
//! size: the one way in which an object of a ledger is written twice. The text under the signatures stays the same to
//! the byte.
//!
//! At a start the mirror's checkpoint is compared first. The mirror is always behind the store or as far; where its
//! checkpoint is ahead, or not the beginning of the store's, the store was rolled back or replaced, and the control
//! plane does not start.

use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::Instant;
use url::Url;

use super::publisher::TAKEOVER_AFTER;
use super::{Ledger, checkpoints_folder, folder, kept_path, newest_path};
use crate::audit::note::{Note, VKey};
use crate::audit::tile::Tiles;
use crate::audit::{AuditError, Checkpoint, Hash, signer, tree, witness};
use crate::model::OrgName;
use crate::node::{Node, PlaneError};
use crate::storage::{Ensured, StorageError, Store};

/// How long a witness may take to answer.
const WITNESS_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after the first failure; it doubles up to the longest.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// How often a witness must say that it has seen more entries than there are before that is taken for what it means:
/// another node may be ahead of this one for a moment.
const ROLLBACK_CLAIMS: u32 = 3;

/// Where checkpoints are handed on to, if anywhere.
#[derive(Debug, Default)]
pub struct Elsewhere {
    /// Who cosigns them.
    pub witness: Option<Witness>,
    /// Where they are copied to.
    pub mirror: Option<Store>,
}

/// A witness.
#[derive(Debug)]
pub struct Witness {
    url: String,
    vkey: VKey,
    http: reqwest::Client,
}

impl Witness {
    /// The witness at `url`, whose cosignatures this key verifies.
    ///
    /// # Errors
    /// [`AuditError::Malformed`] when the key is no cosignature's, [`AuditError::Key`] when the client cannot be made.
    pub fn new(url: &Url, vkey: VKey) -> Result<Self, AuditError> {
        if !vkey.is_cosignature() {
            return Err(AuditError::Malformed(format!(
                "{vkey} is no witness's key: those are for cosignatures (type 4)"
            )));
        }
        let http =
            reqwest::Client::builder().timeout(WITNESS_TIMEOUT).build().map_err(|e| AuditError::Key(e.to_string()))?;
        Ok(Self { url: format!("{}/add-checkpoint", url.as_str().trim_end_matches('/')), vkey, http })
    }
}

/// A checkpoint as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct SignedCheckpoint {
    pub(crate) checkpoint: Checkpoint,
    /// The note, with all of its signatures.
    pub(crate) note: String,
    /// Whether this process signed it, or found it when it started.
    pub(crate) ours: bool,
    /// Since when this process knows it.
    pub(crate) since: Instant,
}

impl SignedCheckpoint {
    /// One that was there when the process started.
    pub(crate) fn found(checkpoint: Checkpoint, note: String) -> Self {
        Self { checkpoint, note, ours: true, since: Instant::now() }
    }
}

/// How far an org's checkpoints have been replicated.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The greatest checkpoint that the witness has cosigned, as far as this process knows.
    cosigned: u64,
    /// The note that the mirror has.
    mirrored: String,
    failures: u32,
    retry_at: Option<Instant>,
    rollback_claims: u32,
    /// What the witness contradicts, for the ledger: the size of the checkpoint, and the reason.
    pub(crate) contradiction: Option<(u64, String)>,
}

/// Replicates the newest checkpoint to those that lack it; a failure is logged and retried after a backoff.
pub(crate) async fn replicate(
    node: &Node,
    ledger: &Ledger,
    elsewhere: &Elsewhere,
    progress: &mut Progress,
    draining: bool,
) {
    if ledger.health.is_stopped() || progress.retry_at.is_some_and(|at| Instant::now() < at) && !draining {
        return;
    }
    match hand_on(node, ledger, elsewhere, progress).await {
        Ok(()) => (progress.failures, progress.retry_at) = (0, None),
        Err(reason) => {
            let backoff = (FIRST_BACKOFF * 2_u32.saturating_pow(progress.failures.min(6))).min(LONGEST_BACKOFF);
            progress.failures = progress.failures.saturating_add(1);
            progress.retry_at = Some(Instant::now() + backoff);
            node.metrics.audit.handing_failures.inc();
            tracing::warn!(org = %ledger.org, reason, retry_in = ?backoff, "a checkpoint was not replicated");
        }
    }
}

/// Hands the newest checkpoint to those that lack it.
async fn hand_on(node: &Node, ledger: &Ledger, elsewhere: &Elsewhere, progress: &mut Progress) -> Result<(), String> {
    let Some(mut head) = ledger.publisher.lock().await.newest.clone() else { return Ok(()) };
    let is_our_turn = head.ours || head.since.elapsed() >= TAKEOVER_AFTER;
    let mut outcome = Ok(());
    if let Some(witness) = &elsewhere.witness
        && progress.cosigned < head.checkpoint.size
        && is_our_turn
    {
        if !head.ours
            && let Some(stored) = kept(node, &ledger.org, head.checkpoint.size).await.map_err(|e| e.to_string())?
        {
            head.note = stored;
        }
        let known = head.note.parse::<Note>().is_ok_and(|note| witness.vkey.verify(&note).is_ok());
        if known {
            progress.cosigned = head.checkpoint.size;
        } else {
            match cosign(node, ledger, witness, &head, progress).await {
                Ok(note) => head.note = note,
                // The mirror gets the checkpoint all the same.
                Err(reason) => outcome = Err(format!("the witness: {reason}")),
            }
        }
    }
    if let Some(mirror) = &elsewhere.mirror
        && progress.mirrored != head.note
        && is_our_turn
    {
        copy(mirror, &ledger.org, &head).await.map_err(|e| format!("the mirror {}: {e}", mirror.url()))?;
        progress.mirrored = head.note;
    }
    outcome
}

/// The size of the greatest checkpoint that is kept in the store; 0 without one.
async fn newest_kept(node: &Node, org: &OrgName) -> Result<u64, StorageError> {
    let kept = node.store.list(&checkpoints_folder(org)).await?;
    Ok(kept.iter().filter_map(|meta| meta.location.filename()?.parse().ok()).max().unwrap_or(0))
}

/// Has a checkpoint cosigned, and stores it so.
async fn cosign(
    node: &Node,
    ledger: &Ledger,
    witness: &Witness,
    head: &SignedCheckpoint,
    progress: &mut Progress,
) -> Result<String, String> {
    let size = head.checkpoint.size;
    let mut old = progress.cosigned;
    // At most twice: the witness tells where it stands, and from there it must go on.
    for _ in 0..2 {
        let proof = consistency(node, &ledger.org, old, size).await.map_err(|e| e.to_string())?;
        let request = witness::request(old, &proof, &head.note);
        let answer = witness.http.post(&witness.url).body(request).send().await.map_err(|e| without_url(&e))?;
        let status = answer.status();
        let body = answer.text().await.map_err(|e| without_url(&e))?;
        match status {
            StatusCode::OK => {
                let note = witness::cosigned(&head.note, &body, &witness.vkey).map_err(|e| e.to_string())?;
                let note = keep(node, ledger, head, &note).await.map_err(|e| e.to_string())?;
                (progress.cosigned, progress.rollback_claims) = (size, 0);
                node.metrics.audit.cosignatures.inc();
                return Ok(note);
            }
            StatusCode::CONFLICT => {
                let seen = witness::conflict(&body).map_err(|e| e.to_string())?;
                if seen > size {
                    // The node that signed it stored it before handing it on.
                    if newest_kept(node, &ledger.org).await.map_err(|e| e.to_string())? >= seen {
                        return Err(format!("another node has had {seen} entries cosigned"));
                    }
                    progress.rollback_claims += 1;
                    let reason = format!("it has seen {seen} entries, and the ledger has {size}: it was rolled back");
                    if progress.rollback_claims >= ROLLBACK_CLAIMS {
                        contradict(ledger, progress, size, &reason);
                    }
                    return Err(reason);
                }
                if seen == old {
                    return Err(format!("it says 409 to the size {old}, and that it saw {old}"));
                }
                old = seen;
            }
            StatusCode::UNPROCESSABLE_ENTITY => {
                let reason = format!("what it saw at {old} entries is not the beginning of the ledger's {size}");
                contradict(ledger, progress, size, &reason);
                return Err(reason);
            }
            other => return Err(format!("it answers {other} to a checkpoint of {size} entries")),
        }
    }
    Err("it names another size each time".to_owned())
}

/// What went wrong with a request, without the URL, which is known and may hold more than should be logged.
fn without_url(error: &reqwest::Error) -> String {
    let mut reason = String::new();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = cause.to_string();
        source = cause.source();
    }
    let what = if error.is_timeout() { "it does not answer in time" } else { "it cannot be asked" };
    if reason.is_empty() { what.to_owned() } else { format!("{what}: {reason}") }
}

/// Notes that the ledger did not stand the witness's check, for the ledger itself.
fn contradict(ledger: &Ledger, progress: &mut Progress, size: u64, reason: &str) {
    tracing::error!(org = %ledger.org, reason, "the witness contradicts the ledger");
    progress.contradiction = Some((size, reason.to_owned()));
}

/// Stores a checkpoint with more signatures than before: by its size, and as the newest if it still is. Nobody may sign
/// a newer one in this process meanwhile. Should another node do so between the look and the write, its checkpoint is
/// the newest again as soon as it is cosigned in turn.
async fn keep(node: &Node, ledger: &Ledger, head: &SignedCheckpoint, note: &str) -> Result<String, StorageError> {
    let mut publisher = ledger.publisher.lock().await;
    let before = kept(node, &ledger.org, head.checkpoint.size).await?;
    let note = before.and_then(|before| witness::joined(note, &before)).unwrap_or_else(|| note.to_owned());
    node.store.put(&kept_path(&ledger.org, head.checkpoint.size), note.clone().into()).await?;
    let newest = newest_path(&ledger.org);
    let found = node.store.get(&newest).await?;
    let found = found.and_then(|found| String::from_utf8(found.to_vec()).ok()).unwrap_or_default();
    match witness::joined(&note, &found) {
        Some(joined) => node.store.put(&newest, joined.into()).await?,
        None if size_of(&found) < Some(head.checkpoint.size) => node.store.put(&newest, note.clone().into()).await?,
        None => {}
    }
    if let Some(newest) = publisher.newest.as_mut().filter(|newest| newest.checkpoint == head.checkpoint) {
        newest.note.clone_from(&note);
    }
    Ok(note)
}

async fn kept(node: &Node, org: &OrgName, size: u64) -> Result<Option<String>, StorageError> {
    let found = node.store.get(&kept_path(org, size)).await?;
    Ok(found.and_then(|found| String::from_utf8(found.to_vec()).ok()))
}

/// The proof that the tree of `new` entries begins with that of `old`.
async fn consistency(node: &Node, org: &OrgName, old: u64, new: u64) -> Result<Vec<Hash>, PlaneError> {
    let ranges = tree::consistency(old, new);
    let mut tiles = Tiles::new(new);
    let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(format!("{}/tile", folder(org)), e);
    for id in tiles.needed(&ranges) {
        let bytes = super::reader::tile(&node.store, org, id).await?;
        tiles.insert(id, &bytes).map_err(|e| damaged(&e))?;
    }
    Ok(tiles.proof(&ranges).ok_or_else(|| damaged(&"the tiles do not give a consistency proof"))?)
}

/// How many entries a checkpoint covers; none of what is no checkpoint.
fn size_of(note: &str) -> Option<u64> {
    let note: Note = note.parse().ok()?;
    note.text.parse::<Checkpoint>().ok().map(|checkpoint| checkpoint.size)
}

/// Copies a checkpoint to the mirror, unless that has a newer one.
async fn copy(mirror: &Store, org: &OrgName, head: &SignedCheckpoint) -> Result<(), StorageError> {
    let newest = newest_path(org);
    let found = mirror.get(&newest).await?.map(|found| String::from_utf8_lossy(&found).into_owned());
    if found.and_then(|found| size_of(&found)) > Some(head.checkpoint.size) {
        return Ok(());
    }
    mirror.put(&newest, head.note.clone().into()).await?;
    match mirror.ensure(&kept_path(org, head.checkpoint.size), head.note.clone().into()).await? {
        // One that was copied before it was cosigned.
        Ensured::Same | Ensured::Other(_) => Ok(()),
    }
}

/// The mirror's checkpoint of a ledger, if there is a mirror and it has one.
pub(crate) async fn mirrored(
    node: &Node,
    elsewhere: &Elsewhere,
    org: &OrgName,
    origin: &str,
) -> Result<Option<Checkpoint>, StorageError> {
    let Some(mirror) = &elsewhere.mirror else { return Ok(None) };
    let path = newest_path(org);
    let Some(bytes) = mirror.get(&path).await? else { return Ok(None) };
    let note = String::from_utf8(bytes.to_vec()).map_err(|e| mirror.unusable(format!("{path} of the mirror: {e}")))?;
    let head = signer::check(&node.signing, origin, &note);
    head.map(Some).map_err(|e| mirror.unusable(format!("{path}, the mirror's head of the ledger of org {org}: {e}")))
}

/// Compares the mirror's checkpoint with the store's, which was read after it.
pub(crate) async fn compare(
    node: &Node,
    org: &OrgName,
    mirrored: Option<&Checkpoint>,
    head: Option<&Checkpoint>,
) -> Result<(), StorageError> {
    let Some(mirrored) = mirrored else { return Ok(()) };
    let advice = "find out who did so; restore the store, or begin with an empty mirror to accept the loss";
    let size = head.map_or(0, |head| head.size);
    if mirrored.size > size {
        return Err(node.store.unusable(format!(
            "the ledger of org {org} was rolled back: its checkpoint covers {size} entries, and the mirror's covers {}; {advice}",
            mirrored.size
        )));
    }
    let Some(head) = head else { return Ok(()) };
    let mut tiles = Tiles::new(head.size);
    let ranges = tree::consistency(mirrored.size, head.size);
    for id in tiles.needed(&ranges) {
        let bytes = super::reader::tile(&node.store, org, id).await?;
        tiles.insert(id, &bytes).map_err(|e| StorageError::damaged(format!("{}/tile/{id}", folder(org)), e))?;
    }
    let proof = tiles.proof(&ranges).unwrap_or_default();
    if tree::verify_consistency(mirrored.size, head.size, &mirrored.root, &head.root, &proof) {
        return Ok(());
    }
    Err(node.store.unusable(format!(
        "the ledger of org {org} is another one than the mirror's: the {} entries that the mirror's checkpoint covers are not the \
         beginning of the {} here; {advice}",
        mirrored.size, head.size
    )))
}
