//! Heads elsewhere: each new head is handed to a witness, which cosigns it, and copied to a second store, the mirror; so that
//! whoever takes the first store cannot roll a ledger back unseen.
//!
//! This goes on beside everything else: nothing waits for it but the end of the process, and that not for long. A head that
//! cannot be handed on is tried again; a newer one takes its place. The node that signed a head hands it on; another one takes
//! over when nothing comes of that.
//!
//! The witness's signature becomes a further line of the note, on the newest head and on the copy that is kept by size: the
//! one way in which an object of a ledger is written twice. The text under the signatures stays the same to the byte.
//!
//! At a start the mirror's head is compared first. The mirror is always behind the store or as far; where its head is ahead,
//! or not the beginning of the store's, the store was rolled back or replaced, and the control plane does not start.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};
use reqwest::StatusCode;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::ledger::{folder, kept_path, newest_path};
use super::org::Org;
use super::own_events::OwnEvent;
use super::press::{get, put};
use super::{Plane, PlaneError, Readiness};
use crate::audit::note::{Note, VKey};
use crate::audit::tile::Tiles;
use crate::audit::{AuditError, Checkpoint, Hash, signer, tree, witness};
use crate::model::OrgName;
use crate::storage::{StorageError, Store};

/// How often it looks for new heads.
const TICK: Duration = Duration::from_millis(200);
/// How long another node is waited for before its head is handed on for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a witness may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The pause after the first failure; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the end of the process waits for the last heads to be handed on.
const FAREWELL: Duration = Duration::from_secs(5);
/// Orgs whose heads are handed on at once.
const AT_ONCE: usize = 8;
/// How often a witness must say that it has seen more entries than there are before that is taken for what it means: another
/// node may be ahead of this one for a moment.
const DOUBTS: u32 = 3;

/// Where heads are handed on to, if anywhere.
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
        let http = reqwest::Client::builder().timeout(ANSWER).build().map_err(|e| AuditError::Key(e.to_string()))?;
        Ok(Self { url: format!("{}/add-checkpoint", url.as_str().trim_end_matches('/')), vkey, http })
    }
}

/// A head as it is stored.
#[derive(Debug, Clone)]
pub(super) struct SignedHead {
    pub(super) checkpoint: Checkpoint,
    /// The note, with all of its signatures.
    pub(super) note: String,
    /// Whether this process signed it, or found it when it started.
    pub(super) ours: bool,
    /// Since when this process knows it.
    pub(super) since: Instant,
}

impl SignedHead {
    /// One that was there when the process started.
    pub(super) fn found(checkpoint: Checkpoint, note: String) -> Self {
        Self { checkpoint, note, ours: true, since: Instant::now() }
    }
}

/// How far an org's heads have been handed on.
#[derive(Debug, Default)]
struct Progress {
    /// The greatest head that the witness has cosigned, as far as this process knows.
    cosigned: u64,
    /// The note that the mirror has.
    mirrored: String,
    failures: u32,
    again_at: Option<Instant>,
    doubts: u32,
}

/// Hands heads on until the plane is drained.
pub(super) async fn run(plane: Arc<Plane>) {
    if plane.elsewhere.witness.is_none() && plane.elsewhere.mirror.is_none() {
        return;
    }
    let progress = Progresses::default();
    while plane.readiness() != Readiness::Draining {
        sleep(TICK).await;
        hand_on_all(&plane, &progress, false).await;
    }
    // The last heads are signed while the plane drains. The sender lives as long as the plane: it cannot go away.
    let _ = plane.pressed.subscribe().wait_for(|pressed| *pressed).await;
    hand_on_all(&plane, &progress, true).await;
    plane.handed_on.send_replace(true);
}

/// Waits until the last heads are handed on, but not for long: the next start does it too.
pub(super) async fn finish(plane: &Plane) {
    if plane.elsewhere.witness.is_none() && plane.elsewhere.mirror.is_none() {
        return;
    }
    let mut handed_on = plane.handed_on.subscribe();
    if timeout(FAREWELL, handed_on.wait_for(|done| *done)).await.is_err() {
        tracing::warn!("the last heads were not handed on in time; the next start does it");
    }
}

type Progresses = tokio::sync::Mutex<HashMap<OrgName, Progress>>;

async fn hand_on_all(plane: &Arc<Plane>, all: &Progresses, is_last: bool) {
    let handed = futures::stream::iter(plane.all_orgs()).for_each_concurrent(AT_ONCE, |org| async move {
        if org.is_stopped() {
            return;
        }
        let mut progress = all.lock().await.remove(&org.name).unwrap_or_default();
        let waits = progress.again_at.is_some_and(|at| Instant::now() < at) && !is_last;
        if !waits {
            match hand_on(plane, &org, &mut progress).await {
                Ok(()) => (progress.failures, progress.again_at) = (0, None),
                Err(reason) => {
                    let pause = (PAUSE * 2_u32.saturating_pow(progress.failures.min(6))).min(LONGEST_PAUSE);
                    progress.failures = progress.failures.saturating_add(1);
                    progress.again_at = Some(Instant::now() + pause);
                    plane.metrics.audit.handing_failures.inc();
                    tracing::warn!(org = %org.name, reason, again_in = ?pause, "a head was not handed on");
                }
            }
        }
        all.lock().await.insert(org.name.clone(), progress);
    });
    handed.await;
}

/// Hands the newest head on to whoever does not have it.
async fn hand_on(plane: &Plane, org: &Org, progress: &mut Progress) -> Result<(), String> {
    let Some(mut head) = org.press.lock().await.newest.clone() else { return Ok(()) };
    let is_our_turn = head.ours || head.since.elapsed() >= PATIENCE;
    let mut outcome = Ok(());
    if let Some(witness) = &plane.elsewhere.witness
        && progress.cosigned < head.checkpoint.size
        && is_our_turn
    {
        if !head.ours
            && let Some(stored) = kept(plane, &org.name, head.checkpoint.size).await.map_err(|e| e.to_string())?
        {
            head.note = stored;
        }
        let known = head.note.parse::<Note>().is_ok_and(|note| witness.vkey.verify(&note).is_ok());
        if known {
            progress.cosigned = head.checkpoint.size;
        } else {
            match cosign(plane, org, witness, &head, progress).await {
                Ok(note) => head.note = note,
                // The mirror gets the head all the same.
                Err(reason) => outcome = Err(format!("the witness: {reason}")),
            }
        }
    }
    if let Some(mirror) = &plane.elsewhere.mirror
        && progress.mirrored != head.note
        && is_our_turn
    {
        copy(mirror, &org.name, &head).await.map_err(|e| format!("the mirror {}: {e}", mirror.url()))?;
        progress.mirrored = head.note;
    }
    outcome
}

/// Has a head cosigned, and stores it so.
async fn cosign(
    plane: &Plane,
    org: &Org,
    witness: &Witness,
    head: &SignedHead,
    progress: &mut Progress,
) -> Result<String, String> {
    let size = head.checkpoint.size;
    let mut old = progress.cosigned;
    // At most twice: the witness tells where it stands, and from there it must go on.
    for _ in 0..2 {
        let proof = consistency(plane, &org.name, old, size).await.map_err(|e| e.to_string())?;
        let request = witness::request(old, &proof, &head.note);
        let answer = witness.http.post(&witness.url).body(request).send().await.map_err(|e| without_url(&e))?;
        let status = answer.status();
        let body = answer.text().await.map_err(|e| without_url(&e))?;
        match status {
            StatusCode::OK => {
                let note = witness::cosigned(&head.note, &body, &witness.vkey).map_err(|e| e.to_string())?;
                let note = keep(plane, org, head, &note).await.map_err(|e| e.to_string())?;
                (progress.cosigned, progress.doubts) = (size, 0);
                plane.metrics.audit.cosignatures.inc();
                return Ok(note);
            }
            StatusCode::CONFLICT => {
                let seen = witness::conflict(&body).map_err(|e| e.to_string())?;
                if seen > size {
                    progress.doubts += 1;
                    let reason = format!("it has seen {seen} entries, and the ledger has {size}: it was rolled back");
                    if progress.doubts >= DOUBTS {
                        accuse(plane, &org.name, size, &reason).await;
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
                accuse(plane, &org.name, size, &reason).await;
                return Err(reason);
            }
            other => return Err(format!("it answers {other} to a head of {size} entries")),
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

/// Puts into the ledger that it did not stand a check, once for each head.
async fn accuse(plane: &Plane, org: &OrgName, size: u64, reason: &str) {
    tracing::error!(%org, reason, "the witness contradicts the ledger");
    let detail = json!({ "check": "witness", "size": size.to_string() });
    let event = OwnEvent::new(plane.actor(), "ledger.verification_failed").reason(reason).detail(detail);
    if let Err(e) = plane.record_once(org, vec![event], &format!("witness/{size}")).await {
        tracing::warn!(%org, error = %e, "that the witness contradicts the ledger could not be put into it");
    }
}

/// Stores a head with more signatures than before: by its size, and as the newest if it still is. Nobody may sign a newer one
/// in this process meanwhile. Should another node do so between the look and the write, its head is the newest again as soon
/// as it is cosigned in turn.
async fn keep(plane: &Plane, org: &Org, head: &SignedHead, note: &str) -> Result<String, StorageError> {
    let mut press = org.press.lock().await;
    let before = kept(plane, &org.name, head.checkpoint.size).await?;
    let note = before.and_then(|before| witness::joined(note, &before)).unwrap_or_else(|| note.to_owned());
    put(plane, &kept_path(&org.name, head.checkpoint.size), note.clone().into()).await?;
    let newest = newest_path(&org.name);
    let found = get(plane, &newest).await?;
    let found = found.and_then(|found| String::from_utf8(found.to_vec()).ok()).unwrap_or_default();
    match witness::joined(&note, &found) {
        Some(joined) => put(plane, &newest, joined.into()).await?,
        None if size_of(&found) < Some(head.checkpoint.size) => put(plane, &newest, note.clone().into()).await?,
        None => {}
    }
    if let Some(newest) = press.newest.as_mut().filter(|newest| newest.checkpoint == head.checkpoint) {
        newest.note.clone_from(&note);
    }
    Ok(note)
}

async fn kept(plane: &Plane, org: &OrgName, size: u64) -> Result<Option<String>, StorageError> {
    let found = get(plane, &kept_path(org, size)).await?;
    Ok(found.and_then(|found| String::from_utf8(found.to_vec()).ok()))
}

/// The proof that the tree of `new` entries begins with that of `old`.
async fn consistency(plane: &Plane, org: &OrgName, old: u64, new: u64) -> Result<Vec<Hash>, PlaneError> {
    let ranges = tree::consistency(old, new);
    let mut tiles = Tiles::new(new);
    let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(format!("{}/tile", folder(org)), e);
    for id in tiles.needed(&ranges) {
        let bytes = plane.tile(org, id).await?;
        tiles.insert(id, &bytes).map_err(|e| damaged(&e))?;
    }
    Ok(tiles.proof(&ranges).ok_or_else(|| damaged(&"the tiles do not give a consistency proof"))?)
}

/// How many entries a head covers; none of what is no head.
fn size_of(note: &str) -> Option<u64> {
    let note: Note = note.parse().ok()?;
    note.text.parse::<Checkpoint>().ok().map(|checkpoint| checkpoint.size)
}

/// Copies a head to the mirror, unless that has a newer one.
async fn copy(mirror: &Store, org: &OrgName, head: &SignedHead) -> Result<(), StorageError> {
    let newest = newest_path(org);
    let found = read(mirror, &newest).await?.map(|found| String::from_utf8_lossy(&found).into_owned());
    if found.and_then(|found| size_of(&found)) > Some(head.checkpoint.size) {
        return Ok(());
    }
    let failed = |e| StorageError::failed("write", &newest, e);
    mirror.objects().put(&newest, head.note.clone().into()).await.map_err(failed)?;
    let kept = kept_path(org, head.checkpoint.size);
    match mirror.objects().put_opts(&kept, head.note.clone().into(), PutMode::Create.into()).await {
        Ok(_) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
        Err(e) => Err(StorageError::failed("create", &kept, e)),
    }
}

async fn read(store: &Store, path: &Path) -> Result<Option<bytes::Bytes>, StorageError> {
    let failed = |e| StorageError::failed("read", path, e);
    match store.objects().get(path).await {
        Ok(found) => found.bytes().await.map(Some).map_err(failed),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// The mirror's head of a ledger, if there is a mirror and it has one.
pub(super) async fn mirrored(plane: &Plane, org: &OrgName, origin: &str) -> Result<Option<Checkpoint>, StorageError> {
    let Some(mirror) = &plane.elsewhere.mirror else { return Ok(None) };
    let path = newest_path(org);
    let Some(bytes) = read(mirror, &path).await? else { return Ok(None) };
    let note = String::from_utf8(bytes.to_vec()).map_err(|e| mirror.unusable(format!("{path} of the mirror: {e}")))?;
    let head = signer::check(&plane.signing, origin, &note);
    head.map(Some).map_err(|e| mirror.unusable(format!("{path}, the mirror's head of the ledger of org {org}: {e}")))
}

/// Compares the mirror's head with the store's, which was read after it.
pub(super) async fn compare(
    plane: &Plane,
    org: &OrgName,
    mirrored: Option<&Checkpoint>,
    head: Option<&Checkpoint>,
) -> Result<(), StorageError> {
    let Some(mirrored) = mirrored else { return Ok(()) };
    let advice = "find out who did so; restore the store, or begin with an empty mirror to accept the loss";
    let size = head.map_or(0, |head| head.size);
    if mirrored.size > size {
        return Err(plane.store.unusable(format!(
            "the ledger of org {org} was rolled back: its head covers {size} entries, and the mirror's covers {}; {advice}",
            mirrored.size
        )));
    }
    let Some(head) = head else { return Ok(()) };
    let mut tiles = Tiles::new(head.size);
    let ranges = tree::consistency(mirrored.size, head.size);
    for id in tiles.needed(&ranges) {
        let bytes = super::evidence::stored_tile(plane, org, id).await?;
        tiles.insert(id, &bytes).map_err(|e| StorageError::damaged(format!("{}/tile/{id}", folder(org)), e))?;
    }
    let proof = tiles.proof(&ranges).unwrap_or_default();
    if tree::verify_consistency(mirrored.size, head.size, &mirrored.root, &head.root, &proof) {
        return Ok(());
    }
    Err(plane.store.unusable(format!(
        "the ledger of org {org} is another one than the mirror's: the {} entries that the mirror's head covers are not the \
         beginning of the {} here; {advice}",
        mirrored.size, head.size
    )))
}
