//! Somebody changes the store behind the nodes' back: restores a part of it, or has access to it without the key.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use mcpg::audit::note::VKey;
use mcpg::audit::verify::{Expected, Objects, Sound, VerifyError, verify as verify_ledger};
use mcpg::ingest::RowKind;
use mcpg::plane::Parts;
use object_store::path::Path;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::batches::{Batch, Naming};
use super::checker::UNREADABLE;
use super::disk::{Disk, Image, plant};
use super::life::play;
use super::node::{NoAnswer, Recipe, keys};
use super::sea::Sea;
use super::store::Process;
use super::trace::Trace;
use super::world::World;

use May::{Refuse, Serve, Stop, Unreadable, Verify, Wrong};

/// Verifies an org's ledger from what lies on the store, as `mcpg audit verify` does.
pub(super) async fn verify(sea: &Arc<Sea>, org: &str) -> Result<Sound, VerifyError> {
    let auditor = Process::new(sea, 100, 0);
    auditor.spare();
    let vkey: VKey = keys().vkey(&format!("mcpg.local/orgs/{org}/audit/1")).unwrap();
    let expected =
        Expected { org: org.parse().unwrap(), vkeys: vec![vkey], witnesses: Vec::new(), checkpoints: Vec::new() };
    let objects = Objects::new(Arc::new(auditor), format!("orgs/{org}/audit"), Handle::current());
    let verified = tokio::task::spawn_blocking(move || verify_ledger(&objects, &expected, None, &|_, _| {}));
    verified.await.unwrap()
}

/// What may become of a store that was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    /// No node starts; the error names what was changed.
    Refuse,
    /// Orgs are stopped; the error names what was changed.
    Stop,
    /// All is served, rightly.
    Serve,
    /// A reader of the tables finds a file unreadable.
    Unreadable,
    /// The server shows what was changed, and `mcpg audit verify` finds it.
    Verify,
    /// Numbers are wrong, or rows gone, and nothing can tell: the format has no proof of it.
    Wrong,
}

/// What a restore may lead to that left something to be seen.
const SEEN: &[May] = &[Refuse, Stop];
/// What any change may lead to of which nothing is served wrongly.
const HARMLESS: &[May] = &[Refuse, Stop, Serve, Unreadable];
/// As [`HARMLESS`], for what only its checkpoint proves.
const PROVED: &[May] = &[Refuse, Stop, Serve, Unreadable, Verify];
/// As [`HARMLESS`], for Delta's tables, of which nothing is authenticated.
const BARE: &[May] = &[Refuse, Stop, Serve, Unreadable, Wrong];

/// A store as it was at several moments of one history, and as it was after another history that began the same.
#[derive(Debug)]
struct History {
    early: Image,
    late: Image,
    regrown: Image,
    /// What was acknowledged until then.
    until_early: Vec<Batch>,
    until_late: Vec<Batch>,
}

/// Something that was done to the store: the store after it, what an error must name (one of these), and what may come
/// of it.
struct Row {
    name: String,
    image: Image,
    named: Vec<String>,
    may: &'static [May],
    /// The batches that must be there, where all is served.
    acknowledged: Vec<Batch>,
}

const FLUSH: Duration = Duration::from_millis(300);
const ORGS: usize = 2;

fn world(seed: u64, trace: Trace, image: &Image) -> World {
    altered(seed, trace, image, |_| {})
}

/// The same, whose nodes are made of other parts.
fn altered(seed: u64, trace: Trace, image: &Image, alter: fn(&mut Parts)) -> World {
    let recipe = Recipe { alter, ..Recipe::of(&World::config(ORGS, FLUSH, "")) };
    World::new(seed, trace, Disk::of(image), ORGS, recipe)
}

/// Sends batches with keys to the nodes in turn, from the number `from` on, and waits a little after each.
async fn send(world: &World, nodes: usize, count: usize, pause: Duration) -> Vec<Batch> {
    let mut sent = Vec::new();
    for number in 0..count {
        let org = world.orgs()[number % ORGS].clone();
        let kind = if number % 5 < 3 { RowKind::Sample } else { RowKind::Event };
        let batch = world.make(&org, kind, 1 + number % 3, Naming::Key);
        let node = world.node(number % nodes).unwrap();
        assert!(world.send(&node, &batch).await, "batch {number} is not taken in fair weather");
        sent.push(batch);
        sleep(pause).await;
    }
    sent
}

fn history() -> &'static History {
    static HISTORY: LazyLock<History> = LazyLock::new(|| {
        let (found, _) = play(1, |trace| async move {
            let first = world(1, trace.clone(), &Image::new());
            for node in 0..2 {
                first.start(node).await;
            }
            let until_early = send(&first, 2, 24, Duration::from_millis(200)).await;
            sleep(Duration::from_secs(3)).await;
            let early = first.sea().disk.image();
            let mut until_late = until_early.clone();
            until_late.extend(send(&first, 2, 40, Duration::from_millis(200)).await);
            sleep(Duration::from_secs(3)).await;
            // The last ones are in the log alone.
            until_late.extend(send(&first, 2, 6, Duration::from_millis(20)).await);
            (0..2).for_each(|node| first.kill(node));
            let late = first.sea().disk.image();
            let second = world(2, trace, &early);
            second.batches().skip(until_late.len() as u64 + 1_000);
            second.start(0).await;
            send(&second, 1, 60, Duration::from_millis(200)).await;
            second.kill(0);
            let regrown = second.sea().disk.image();
            History { early, late, regrown, until_early, until_late }
        });
        found.unwrap()
    });
    &HISTORY
}

/// An image in which what lies under `folder` is as in another one.
fn with(image: &Image, folder: &str, from: &Image) -> Image {
    let under = |path: &Path| path.as_ref().starts_with(folder);
    let kept = image.iter().filter(|(path, _)| !under(path));
    kept.chain(from.iter().filter(|(path, _)| under(path)))
        .map(|(path, object)| (path.clone(), object.clone()))
        .collect()
}

/// The objects of the log, in order.
fn log(image: &Image) -> Vec<Path> {
    let numbered = |path: &&Path| {
        path.as_ref().starts_with("wal/")
            && path.parts().count() == 2
            && path.filename().unwrap().parse::<u64>().is_ok()
    };
    image.keys().filter(numbered).cloned().collect()
}

/// What a restore or a mishap of the operator's does.
fn restores() -> Vec<Row> {
    let History { early, late, regrown, until_early, until_late } = history();
    let mut rows = Vec::new();
    let mut add = |name: &str, image: Image, named: &[&str], may, acknowledged: &[Batch]| {
        let named = named.iter().map(ToString::to_string).collect();
        rows.push(Row { name: name.to_owned(), image, named, may, acknowledged: acknowledged.to_vec() });
    };
    add("nothing at all", late.clone(), &[], &[Serve], until_late);
    add("the whole store as it was", early.clone(), &[], &[Serve], until_early);
    add("the log older than the orgs", with(late, "wal/", early), &["wal"], SEEN, until_late);
    add("the orgs older than the log", with(late, "orgs/", early), &["wal", "orgs/"], HARMLESS, until_late);
    add("the log restored and grown again", with(late, "wal/", regrown), &["wal"], SEEN, until_late);
    add("no log", with(late, "wal/", &Image::new()), &["wal"], SEEN, until_late);
    add("one org as it was", with(late, "orgs/org-0/", early), &["orgs/org-0", "wal"], HARMLESS, until_late);
    add("one org of another history", with(late, "orgs/org-0/", regrown), &["orgs/org-0", "wal"], SEEN, until_late);
    for folder in
        ["tool_invocations/", "tool_usage_hourly/", "state/", "totals/", "keys/", "audit/", "audit/checkpoint"]
    {
        let folder = format!("orgs/org-0/{folder}");
        let name = format!("{folder} as it was");
        add(&name, with(late, &folder, early), &["orgs/org-0", "org-0", "wal"], HARMLESS, until_late);
        let name = format!("{folder} gone");
        let named = ["orgs/org-0", "org-0", "wal"];
        add(&name, with(late, &folder, &Image::new()), &named, HARMLESS, until_late);
    }
    let numbers = log(late);
    for (what, at) in [("first", 0), ("second", 1), ("middle", numbers.len() / 2), ("last but one", numbers.len() - 2)]
    {
        let mut image = late.clone();
        image.remove(&numbers[at]);
        add(&format!("the log's {what} object gone"), image, &[numbers[at].as_ref(), "wal"], HARMLESS, until_late);
    }
    // That the log was one longer is known to nobody who was there.
    let mut image = late.clone();
    image.remove(numbers.last().unwrap());
    add("the log's last object gone", image, &["wal"], BARE, until_late);
    rows
}

/// Kinds of objects: what their paths begin with and hold, and what may come of changing one.
const KINDS: &[(&str, &str, &[May])] = &[
    ("wal/0", "", HARMLESS),
    ("wal/1", "", HARMLESS),
    ("wal/layout", "", HARMLESS),
    ("wal/floor", "", HARMLESS),
    ("orgs/org-0/state/", "", HARMLESS),
    ("orgs/org-0/totals/", "", HARMLESS),
    ("orgs/org-0/keys/", "", HARMLESS),
    ("orgs/org-0/parked/", "", HARMLESS),
    ("orgs/org-0/tool_invocations/_delta_log/", ".json", BARE),
    ("orgs/org-0/tool_invocations/date", ".parquet", BARE),
    ("orgs/org-0/tool_usage_hourly/date", ".parquet", BARE),
    ("orgs/org-0/audit/segments/", "", PROVED),
    ("orgs/org-0/audit/tile/0/", "", PROVED),
    ("orgs/org-0/audit/tile/entries/", "", PROVED),
    ("orgs/org-0/audit/checkpoint", "", PROVED),
    ("orgs/org-0/audit/checkpoints/", "", PROVED),
];

/// What somebody does who can write the store and does not have the key.
fn thefts() -> Vec<Row> {
    let History { late, until_late, .. } = history();
    let mut rows = Vec::new();
    for (begin, end, may) in KINDS {
        let is_kind = |path: &&Path| {
            let path = path.as_ref();
            path.starts_with(begin)
                && path.ends_with(end)
                && (*begin != "orgs/org-0/audit/checkpoint" || path == *begin)
        };
        let objects: Vec<_> = late.keys().filter(is_kind).cloned().collect();
        let Some(newest) = objects.last() else { continue };
        let middle = &objects[objects.len() / 2];
        let mut add = |name: String, image: Image, path: &Path| {
            let folder = path.as_ref().rsplit_once('/').map_or("wal", |(folder, _)| folder);
            let named = vec![path.to_string(), folder.to_owned(), "wal".to_owned(), "org-0".to_owned()];
            rows.push(Row { name, image, named, may, acknowledged: until_late.clone() });
        };
        for path in [middle, newest] {
            let bytes = late[path].bytes.clone();
            for (where_, at) in [("first", 0), ("tenth", 9), ("middle", bytes.len() / 2), ("last", bytes.len() - 1)] {
                let mut changed = bytes.to_vec();
                changed[at] ^= 4;
                let mut image = late.clone();
                plant(&mut image, path, changed.into());
                add(format!("the {where_} byte of {path} changed"), image, path);
            }
            let mut image = late.clone();
            plant(&mut image, path, bytes.slice(..bytes.len() * 2 / 3));
            add(format!("{path} cut off"), image, path);
            let mut image = late.clone();
            plant(&mut image, path, late[&objects[0]].bytes.clone());
            add(format!("{} in the place of {path}", objects[0]), image, path);
            // The log's newest object is no longer known of by anybody.
            if !(begin.starts_with("wal/") && path == newest) {
                let mut image = late.clone();
                image.remove(path);
                add(format!("{path} gone"), image, path);
            }
        }
        for number in [1, 1_000_000_000_000_000] {
            if let Some(path) = renumbered(newest, number) {
                let mut image = late.clone();
                plant(&mut image, &path, late[newest].bytes.clone());
                add(format!("{newest} again as {path}"), image, &path);
            }
        }
    }
    let floor = Path::from("wal/floor");
    if let Some(object) = late.get(&floor) {
        let text = String::from_utf8_lossy(&object.bytes).into_owned();
        let number = text.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty()).unwrap_or("0");
        let mut image = late.clone();
        plant(&mut image, &floor, text.replacen(number, "1000000000000000", 1).into());
        let named = vec!["wal/floor".to_owned()];
        let name = "a floor of 10^15".to_owned();
        rows.push(Row { name, image, named, may: SEEN, acknowledged: until_late.clone() });
    }
    for stray in ["wal/note.txt", "orgs/org-0/audit/segments/note.txt", "orgs/org-0/state/note.txt"] {
        let mut image = late.clone();
        plant(&mut image, &Path::from(stray), "a note".into());
        let named = vec![stray.to_owned()];
        let name = format!("a stray {stray}");
        rows.push(Row { name, image, named, may: HARMLESS, acknowledged: until_late.clone() });
    }
    rows
}

/// The path of an object that comes `by` later than another of its kind.
fn renumbered(path: &Path, by: u64) -> Option<Path> {
    let (folder, name) = path.as_ref().rsplit_once('/')?;
    let (name, end) = name.split_once('.').map_or((name, String::new()), |(name, end)| (name, format!(".{end}")));
    let renamed = match name.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
            format!("{:020}-{:020}", last + by, last + by + (last - first))
        }
        None => format!("{:020}", name.parse::<u64>().ok()? + by),
    };
    Some(Path::from(format!("{folder}/{renamed}{end}")))
}

/// What became of a store.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    may: May,
    words: String,
}

impl Row {
    /// Starts nodes on the store, reads and writes all of it, and says what came of that.
    fn play(&self, alter: fn(&mut Parts)) -> Came {
        let (image, batches) = (self.image.clone(), self.acknowledged.clone());
        let (verified, _) = play(7, {
            let image = image.clone();
            move |trace| async move {
                let world = world(7, trace, &image);
                let mut faults = Vec::new();
                for org in world.orgs() {
                    faults.extend(verify(world.sea(), org).await.err().map(|e| e.to_string()));
                }
                faults
            }
        });
        let (outcome, _) = play(7, move |trace| attempt(altered(7, trace, &image, alter), batches));
        match outcome {
            Ok(came) => came,
            Err(words) if words.starts_with(UNREADABLE) => Came { may: Unreadable, words },
            Err(words) => {
                let may = if verified.is_ok_and(|faults| faults.is_empty()) { Wrong } else { Verify };
                Came { may, words }
            }
        }
    }

    /// What is wrong with what came of it, if anything.
    fn judge(&self, came: &Came) -> Option<String> {
        let Came { may, words } = came;
        let unnamed = matches!(may, Refuse | Stop) && !self.named.iter().any(|name| words.contains(name));
        if unnamed {
            return Some(format!("{}: {may:?}, and the error names none of {:?}: {words}", self.name, self.named));
        }
        (!self.may.contains(may)).then(|| format!("{}: {may:?}, where only {:?} may be: {words}", self.name, self.may))
    }
}

async fn attempt(world: World, batches: Vec<Batch>) -> Came {
    world.adopt(&batches);
    let mut refusal = String::new();
    for _ in 0..3 {
        match world.try_start(0).await {
            Ok(_) => {
                refusal.clear();
                break;
            }
            Err(NoAnswer::Error(e)) => refusal = e.to_string(),
            Err(NoAnswer::Killed) => refusal = "killed".to_owned(),
        }
    }
    if !refusal.is_empty() {
        return Came { may: Refuse, words: refusal };
    }
    let mut stopped = Vec::new();
    for round in 0..2 {
        let node = world.node(0).unwrap();
        // Senders that had no answer come again; all of these were acknowledged.
        for batch in batches.iter().skip(round).step_by(5) {
            world.send(&node, batch).await;
        }
        for org in world.orgs() {
            for kind in [RowKind::Sample, RowKind::Event] {
                let batch = world.make(org, kind, 2, Naming::Key);
                world.send(&node, &batch).await;
            }
            if !world.look(&node, org).await {
                let said = node.view(org).await.err();
                stopped.push(format!("{org}: {said:?}"));
            }
        }
        if round == 0 {
            // Flushes, checkpoints, trims; and another node that finds what this one left.
            sleep(Duration::from_secs(6)).await;
            world.stop(0).await;
            if let Err(e) = world.try_start(0).await {
                return Came { may: Refuse, words: format!("{e:?}") };
            }
        }
    }
    match stopped.into_iter().reduce(|all, one| format!("{all}; {one}")) {
        Some(words) => Came { may: Stop, words },
        None => Came { may: Serve, words: String::new() },
    }
}

/// Plays rows, and fails with all that came out as they may not. Known ones, by their names, are passed over.
fn judge_all(rows: Vec<Row>, known: &[&str]) {
    let mut wrong = Vec::new();
    let mut count = BTreeMap::new();
    for row in rows {
        let came = row.play(|_| {});
        let words: String = came.words.chars().take(300).collect();
        eprintln!("{}: {:?} {words}", row.name, came.may);
        *count.entry(format!("{:?}", came.may)).or_insert(0) += 1;
        let is_known = known.iter().any(|known| row.name.contains(known));
        match (row.judge(&came), is_known) {
            (Some(reason), false) => wrong.push(reason.chars().take(600).collect::<String>()),
            (None, true) => wrong.push(format!("{} comes out right now: take it out of `expected`", row.name)),
            (Some(_), true) | (None, false) => {}
        }
    }
    eprintln!("{count:?}");
    assert!(wrong.is_empty(), "{} came out wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The first restore that comes out wrong with nodes that are made of other parts.
pub(super) fn wrong_restore(alter: fn(&mut Parts)) -> Option<String> {
    restores().into_iter().find_map(|row| row.judge(&row.play(alter)))
}

/// The last change without the key that comes out wrong with nodes that are made of other parts: that of the floor is
/// among the last.
pub(super) fn wrong_theft(alter: fn(&mut Parts)) -> Option<String> {
    thefts().into_iter().rev().find_map(|row| row.judge(&row.play(alter)))
}

#[test]
fn a_restore_is_served_rightly_or_refused_by_name() {
    judge_all(restores(), super::expected::RESTORES);
}

/// One row in so many of a long table, beginning with the first; all of them where the run is a long one.
fn some(rows: Vec<Row>, one_in: usize) -> Vec<Row> {
    let one_in = if std::env::var_os("SOAK_SECONDS").is_some() { 1 } else { one_in };
    rows.into_iter().step_by(one_in).collect()
}

#[test]
fn a_change_without_the_key_is_refused_by_name_or_has_no_effect() {
    judge_all(some(thefts(), 5), super::expected::THEFTS);
}
