//! Verifying one org: its states and runs of keys, its tables, its ledger, its sections of the log; and that these are
//! of one time, so that a control plane can load it.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;

use object_store::path::Path;
use tokio::runtime::Handle;

use super::index::{Index, Place, beginning};
use super::{Findings, Report, table};
use crate::audit::checkpoint;
use crate::audit::verify::{Expected, Objects, Sound, VerifyError, verify};
use crate::ledger;
use crate::log;
use crate::model::OrgName;
use crate::node::Node;
use crate::state::dedup::{RunRef, Stored};
use crate::state::load::{parked, read_parked};
use crate::state::snapshot::{self, StateHeader};
use crate::state::{state_folder, state_path};
use crate::storage::StorageError;
use crate::storage::table::TableSnapshot;

/// Verifies an org. What is stored of it is read before the log is read on: `index` reaches at least as far.
pub(super) async fn check(node: &Node, org: &OrgName, index: Option<&mut Index>, counts: &mut Report) -> Findings {
    let mut findings = Findings::default();
    states(node, org, counts, &mut findings).await;
    let newest = snapshot::newest(node, org).await.map(|loaded| loaded.map(|loaded| loaded.header));
    // An object that is named already is not named again.
    let newest = match newest {
        Err(StorageError::Damaged { object, .. }) if findings.names(&object) => None,
        newest => findings.take(newest).flatten(),
    };
    if newest.as_ref().is_some_and(|header| header.deleted) {
        // Nothing else of it is to be read; what is left of it is deleted.
        return findings;
    }
    let is_known = newest.is_some() || findings.is_empty();
    let mut tables = Vec::new();
    for name in table::TABLES {
        let snapshot = table::check(node, org, name, &mut findings).await;
        counts.files += snapshot.as_ref().map_or(0, |snapshot| snapshot.files.len() as u64);
        tables.push((name, snapshot));
    }
    let ledger = findings.take(ledger_of(node, org).await);
    let mut kept_apart = Vec::new();
    match parked(node, org).await {
        Ok(parked) => {
            for position in parked {
                // One that was let go meanwhile is left out.
                let object = findings.take(read_parked(node, org, position).await).flatten();
                kept_apart.extend(object.and_then(|object| Place::of(&object, org)));
            }
        }
        Err(e) => findings.add(e),
    }
    let sound = match ledger {
        Some(Ledger::Sound(sound)) => Some(sound.size),
        Some(Ledger::None) => Some(0),
        Some(Ledger::Fault { file, why }) => {
            findings.fault(file, why);
            None
        }
        None => None,
    };
    counts.entries += sound.unwrap_or_default();
    let Some(index) = index else { return findings };
    if let Err(e) = index.extend(node).await {
        findings.add(e);
        return findings;
    }
    // What was parked of it comes before what the log still has.
    kept_apart.retain(|place| place.position <= index.floor.number);
    kept_apart.extend_from_slice(index.of(org));
    let fit = Fit { org, index, places: &kept_apart, newest: newest.as_ref() };
    fit.sections(&mut findings);
    if is_known {
        fit.state(&mut findings);
        for (at, (name, snapshot)) in tables.iter().enumerate() {
            if let Some(snapshot) = snapshot {
                fit.table(at, name, snapshot, &mut findings);
            }
        }
        if let Some(size) = sound {
            fit.ledger(size, &mut findings);
        }
    }
    findings
}

/// Verifies each state: its MAC and form, the log's object of the one that it stands on, and the runs of keys that it
/// names.
async fn states(node: &Node, org: &OrgName, counts: &mut Report, findings: &mut Findings) {
    let Some(positions) = findings.take(snapshot::positions(node, org).await) else { return };
    let (mut objects, mut runs) = (HashMap::new(), HashSet::new());
    for position in positions {
        let path = state_path(org, position);
        // One that has gone meanwhile is no state any more.
        let Some(Some(bytes)) = findings.take(node.store.get(&path).await) else { continue };
        counts.states += 1;
        let Some((header, _, remembered)) = findings.take(snapshot::parse(node, org, position, &bytes).await) else {
            continue;
        };
        let stands_on = header.chain.last().and_then(|base| objects.get(base));
        if stands_on.is_some_and(|object| header.base != *object) {
            findings.fault(&path, "the state that it stands on is of another object of the log than the one it names");
        }
        objects.insert(position, header.object);
        match Stored::decode(&remembered) {
            Ok(stored) => runs.extend(stored.runs().iter().copied()),
            Err(e) => findings.fault(&path, e),
        }
    }
    let mut runs: Vec<RunRef> = runs.into_iter().collect();
    runs.sort_unstable();
    for run in runs {
        let path = Path::from(format!("orgs/{org}/keys/{}", run.name()));
        let Some(bytes) = findings.take(node.store.get(&path).await) else { continue };
        counts.runs += 1;
        match bytes.map(|bytes| run.decode(&bytes)) {
            Some(Ok(_)) => {}
            Some(Err(e)) => findings.fault(&path, e),
            None => findings.fault(&path, "it is missing, and a state names it"),
        }
    }
}

/// What verifying a ledger gave.
enum Ledger {
    None,
    Sound(Box<Sound>),
    Fault { file: String, why: String },
}

/// Verifies the ledger; none if no checkpoint was ever signed.
async fn ledger_of(node: &Node, org: &OrgName) -> Result<Ledger, StorageError> {
    let is_signed = node.store.head(&ledger::newest_path(org)).await?.is_some()
        || !node.store.list(&ledger::checkpoints_folder(org)).await?.is_empty();
    if !is_signed {
        return Ok(Ledger::None);
    }
    let folder = ledger::folder(org);
    let failed = |e: String| StorageError::failed("verify", &folder, e);
    let vkeys = node.signing.vkeys(&checkpoint::origin(&node.settings.name, org)).map_err(|e| failed(e.to_string()))?;
    let expected = Expected { org: org.clone(), vkeys, witnesses: Vec::new(), checkpoints: Vec::new() };
    let source = Objects::new(node.store.objects().clone(), folder.clone(), Handle::current());
    let workers = std::thread::available_parallelism().ok().and_then(|cores| NonZeroUsize::new(cores.get().min(8) - 1));
    let verified = tokio::task::spawn_blocking(move || verify(&source, &expected, workers, &|_, _| {})).await;
    match verified.map_err(|e| failed(e.to_string()))? {
        Ok(sound) => Ok(Ledger::Sound(Box::new(sound))),
        Err(VerifyError::NotSound(fault)) => {
            Ok(Ledger::Fault { file: format!("{folder}/{}", fault.file), why: fault.to_string() })
        }
        Err(VerifyError::CouldNot(e)) => {
            Err(StorageError::failed("read", format!("{folder}/{}", e.path), e.reason.clone()))
        }
    }
}

/// Whether what is stored of an org and the log are of one time.
struct Fit<'a> {
    org: &'a OrgName,
    index: &'a Index,
    places: &'a [Place],
    newest: Option<&'a StateHeader>,
}

impl Fit<'_> {
    fn position(&self) -> u64 {
        self.newest.map_or(0, |header| header.position)
    }

    /// Each section of the org in the log names the one before.
    fn sections(&self, findings: &mut Findings) {
        for (before, place) in self.places.iter().zip(self.places.iter().skip(1)) {
            self.follows(before.position, place, findings);
        }
    }

    fn follows(&self, before: u64, place: &Place, findings: &mut Findings) {
        let unknown = self.index.is_broken(before.min(place.previous), place.position);
        if place.previous != before && !unknown {
            let reason = format!(
                "its section of org {} was written after one at {}, and what is there has one at {before} before it",
                self.org, place.previous
            );
            findings.fault(log::name(place.position), reason);
        }
    }

    /// The newest state is of an object of this log, and the first section after it names it.
    fn state(&self, findings: &mut Findings) {
        let (position, floor, end) = (self.position(), &self.index.floor, self.index.end());
        let object = self.newest.and_then(|header| header.object.as_ref());
        if position > end {
            let reason = format!("the log ends at {end}, before it: one of both is older");
            return findings.fault(state_path(self.org, position), reason);
        }
        let there = if position == floor.number { floor.id.as_ref() } else { self.index.id(position) };
        if let (Some(named), Some(there)) = (object, there)
            && named != there
        {
            let reason = format!("the log has another object {position} than the one that it was made at");
            findings.fault(state_path(self.org, position), reason);
        }
        let Some(next) = self.places.iter().find(|place| place.position > position) else { return };
        if position == 0 && next.previous > 0 {
            let reason = format!("there is no state, and the log no longer has the section at {}", next.previous);
            return findings.fault(state_folder(self.org), reason);
        }
        self.follows(position, next, findings);
        let stored = object.and_then(|id| beginning(&id.beginning()));
        if next.previous == position && next.before.is_some() && stored.is_some() && next.before != stored {
            let reason = format!(
                "its section of org {} was written after another object {position} than the one that the state was made at",
                self.org
            );
            findings.fault(log::name(next.position), reason);
        }
    }

    /// The last section of the org at or under the floor, as far as is known.
    fn last_trimmed(&self) -> u64 {
        self.places.first().map_or(self.position(), |first| first.previous).min(self.index.floor.number)
    }

    /// What a table lacks of the newest state is in the log, and it holds nothing that the log has not.
    fn table(&self, at: usize, name: &str, snapshot: &TableSnapshot, findings: &mut Findings) {
        let (held, end) = (snapshot.position, self.index.end());
        let folder = format!("orgs/{}/{name}", self.org);
        if held > end {
            findings.fault(folder, format!("it holds what came up to {held}, and the log ends at {end}"));
            return;
        }
        let owed = self.newest.and_then(|header| header.tables.get(at)).copied().unwrap_or_default();
        let gone = self.last_trimmed();
        if held < owed && held < gone {
            let reason = format!(
                "it holds what came up to {held}, the newest state needs {owed}, and the log no longer has the section at {gone}"
            );
            findings.fault(folder, reason);
        }
    }

    /// What the checkpoint does not cover is in the log, and it covers nothing that state and log have not.
    fn ledger(&self, size: u64, findings: &mut Findings) {
        if self.index.is_broken(0, u64::MAX) {
            return;
        }
        let stored = self.newest.map_or(0, |header| header.ledger.size);
        let brought = || self.places.iter().filter_map(|place| place.entries);
        let all = brought().map(|(_, end)| end).max().unwrap_or_default().max(stored);
        if size > all {
            let reason = format!("it covers {size} entries, and state and log have {all}: one of both is older");
            findings.fault(ledger::newest_path(self.org), reason);
        }
        let kept_from = brought().map(|(first, _)| first).min().unwrap_or(all);
        if size < all && size < kept_from {
            let reason = format!("it covers {size} entries, and the log no longer has those from there to {kept_from}");
            findings.fault(ledger::newest_path(self.org), reason);
        }
    }
}
