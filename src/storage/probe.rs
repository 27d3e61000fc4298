//! Whether a store does what the protocol of the log stands on, tried before anything else is written to it.
//!
//! Some stores take a condition and ignore it (a create if absent then overwrites), list late, or let a stale version
//! be swapped. Two nodes on such a store lose acknowledged samples without any error. So each start tries, in six round
//! trips and with objects of its own under `.probe/<uuid>/`, which are removed:
//!
//! - of 16 racing creates of one object exactly one wins, the object is the winner's, and one more create does not win;
//! - a listing shows it at once;
//! - where the store has compare-and-swap: a swap of the current version works, and of a stale one does not;
//! - what was deleted can be created again;
//! - its clock is within 5 minutes of ours (nothing depends on it being closer, but retention and people's reading do;
//!   a minute is warned of);
//! - a folder's files and the folder itself can be fsynced; on NFS it is mounted with `lookupcache=none`, since a name
//!   that a client remembers as absent, or as present, would break the reading back of what another node has written.
//!
//! A store that fails one of these is [`StorageError::Unusable`], naming what it lacks. A store that does not answer is
//! a failure as any other. Leftovers of starts that were cut short go once they are an hour old.

use std::path::{Path as FsPath, PathBuf};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::{join, join_all, join4};
use object_store::path::Path;
use object_store::{Error, ObjectMeta};
use uuid::Uuid;

use super::local::FsyncLocal;
use super::{Created, StorageError, Store};
use crate::model::Clock;

const FOLDER: &str = ".probe";
/// How many create one object at once.
const RACERS: usize = 16;
/// How often they race before it is a failure that the fate of some is not known: services throttle writes of one
/// object.
const RACES: usize = 3;
/// Where an instance's credentials are asked for when there are no others.
const INSTANCE_METADATA: &str = "169.254.169.254";
/// A clock that is further away is refused.
const MAX_SKEW: TimeDelta = TimeDelta::minutes(5);
/// A clock that is further away is warned of.
const NOTED_SKEW: TimeDelta = TimeDelta::minutes(1);
/// What a probe that was cut short left is removed after this.
const STALE: TimeDelta = TimeDelta::hours(1);

impl Store {
    /// Tries what the log's protocol needs of a store; see the module's doc. `clock` is ours.
    ///
    /// # Errors
    /// [`StorageError::Unusable`] with what the store lacks, or [`StorageError::Failed`] when it does not answer.
    pub async fn probe(&self, clock: &dyn Clock) -> Result<(), StorageError> {
        if let Some(local) = self.folder() {
            self.check_mount(local)?;
        }
        let probe = Probe { store: self, clock, folder: Path::from(format!("{FOLDER}/{}", Uuid::new_v4())) };
        let found = probe.run().await;
        probe.clean_up().await;
        found
    }

    fn check_mount(&self, local: &FsyncLocal) -> Result<(), StorageError> {
        // Where the system does not tell its mounts, there is nothing to check.
        let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return Ok(()) };
        let root = std::fs::canonicalize(local.root()).unwrap_or_else(|_| local.root().to_owned());
        mount_fault(&mounts, &root).map_or(Ok(()), |reason| Err(self.unusable(reason)))
    }
}

/// One start's probe.
struct Probe<'a> {
    store: &'a Store,
    clock: &'a dyn Clock,
    folder: Path,
}

impl Probe<'_> {
    fn path(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.folder))
    }

    async fn run(&self) -> Result<(), StorageError> {
        let again = self.path("again");
        let began = self.clock.now();
        let (raced, second) = join(self.race(), self.create(&again, Bytes::from_static(b"first"))).await;
        let (race, winner) = raced?;
        if !second? {
            return Err(self.lacks("it refuses to create an object that is absent"));
        }

        let probes = Path::from(FOLDER);
        let (read, listed, deleted, late) = join4(
            self.store.get_versioned(&race),
            self.store.list(&probes),
            self.store.delete(&again),
            self.create(&race, Bytes::from_static(b"late")),
        )
        .await;
        let ended = self.clock.now();
        if late? {
            return Err(
                self.lacks("a create of an object that is there won: it ignores the condition (If-None-Match: *)")
            );
        }
        deleted?;
        let version = match read? {
            Some((bytes, version)) if bytes == winner => version,
            Some(_) => {
                return Err(
                    self.lacks("it says of one create that it won, and holds the bytes of another that it refused")
                );
            }
            None => return Err(self.lacks("a read right after a create does not find the object")),
        };
        let listed = listed?;
        let Some(meta) = listed.iter().find(|meta| meta.location == race) else {
            return Err(self.lacks("a listing right after a create does not show the object"));
        };
        self.check_clock(meta, began, ended)?;
        self.remove_stale(&listed, ended).await;

        let recreate = self.create(&again, Bytes::from_static(b"second"));
        if self.store.can_swap() {
            if version.e_tag.is_none() {
                return Err(self.lacks("it gives objects no ETag, so that none can be swapped"));
            }
            let fresh = Bytes::from_static(b"fresh");
            let (swapped, recreated) =
                join(self.store.swap(&race, Some(version.clone()), fresh.clone()), recreate).await;
            self.check_recreated(recreated?)?;
            if !self.won(swapped)? {
                return Err(self.lacks("it refuses to swap an object that has not changed (If-Match with its ETag)"));
            }
            if self.won(self.store.swap(&race, Some(version), Bytes::from_static(b"stale")).await)? {
                return Err(self.lacks("it swaps an object that has changed: it ignores If-Match with a stale ETag"));
            }
            if self.store.get(&race).await? != Some(fresh) {
                return Err(self.lacks("a refused swap (If-Match with a stale ETag) has changed the object"));
            }
        } else {
            self.check_recreated(recreate.await?)?;
        }
        Ok(())
    }

    /// Creates one object many times at once. Gives the object, and the bytes of the create that won.
    async fn race(&self) -> Result<(Path, Bytes), StorageError> {
        let mut unknown = None;
        for number in 0..RACES {
            let path = self.path(&format!("race-{number}"));
            let bodies: Vec<_> = (0..RACERS).map(|n| Bytes::from(format!("{path} {n}"))).collect();
            let created = join_all(bodies.iter().map(|body| self.store.create(&path, body.clone().into()))).await;
            let (mut winners, mut failure) = (Vec::new(), None);
            for (body, created) in bodies.into_iter().zip(created) {
                match created {
                    Created::Won => winners.push(body),
                    Created::Exists => {}
                    Created::Unknown(e) => failure = Some(e),
                }
            }
            let count = winners.len();
            match (winners.pop(), failure) {
                (Some(_), _) if count > 1 => {
                    return Err(self.lacks(&format!(
                        "{count} of {RACERS} racing creates of one object won: it ignores the condition that the object is \
                         absent (If-None-Match: *)"
                    )));
                }
                (_, Some(failure)) => {
                    tracing::debug!(%path, error = %failure, "the fate of a racing create is not known");
                    unknown = Some(failure);
                }
                (Some(winner), None) => return Ok((path, winner)),
                (None, None) => return Err(self.lacks(&format!("none of {RACERS} racing creates of one object won"))),
            }
        }
        let none = || StorageError::failed("create", &self.folder, "no race was run");
        Err(self.explained(unknown.unwrap_or_else(none)))
    }

    async fn create(&self, path: &Path, body: Bytes) -> Result<bool, StorageError> {
        self.won(self.store.create(path, body.into()).await)
    }

    /// Whether it won; an error where that is not known.
    fn won(&self, created: Created) -> Result<bool, StorageError> {
        match created {
            Created::Won => Ok(true),
            Created::Exists => Ok(false),
            Created::Unknown(e) => Err(self.explained(e)),
        }
    }

    /// What the first writes to a store fail with, said so that an operator knows what to do.
    fn explained(&self, error: StorageError) -> StorageError {
        let StorageError::Failed { source, .. } = &error else { return error };
        if self.store.is_remote() && error.to_string().contains(INSTANCE_METADATA) {
            return self.lacks(&format!(
                "there are no credentials: neither settings nor environment have any, and the instance gives none: {source}"
            ));
        }
        match source.downcast_ref::<Error>() {
            Some(Error::NotFound { .. }) => self.lacks("there is no such bucket, or it is in another region"),
            Some(Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => self.lacks(&format!(
                "writing is not permitted with these credentials, which need to list, read, write and delete: {source}"
            )),
            _ if self.store.folder().is_some() => {
                self.lacks(&format!("a file cannot be written, linked into place and fsynced with its folder: {error}"))
            }
            _ => error,
        }
    }

    fn check_recreated(&self, recreated: bool) -> Result<(), StorageError> {
        match recreated {
            true => Ok(()),
            false => Err(self.lacks("it refuses to create an object again that was deleted")),
        }
    }

    /// The store's clock, as its time of an object that was written between two looks at ours.
    fn check_clock(&self, meta: &ObjectMeta, began: DateTime<Utc>, ended: DateTime<Utc>) -> Result<(), StorageError> {
        let skew = skew(meta.last_modified, began, ended);
        // A folder's clock is this machine's, or that of a file server of whose time nothing is made.
        if skew.abs() > MAX_SKEW && self.store.can_swap() {
            let (by, direction) =
                (skew.num_seconds().abs(), if skew > TimeDelta::zero() { "ahead of" } else { "behind" });
            return Err(self.store.unusable(format!(
                "its clock is {by} s {direction} this machine's; set whichever is wrong, {} s are the most",
                MAX_SKEW.num_seconds()
            )));
        }
        if skew.abs() > NOTED_SKEW {
            let store = self.store.url();
            tracing::warn!(store, seconds = skew.num_seconds(), "the store's clock is away from this machine's");
        }
        Ok(())
    }

    fn lacks(&self, what: &str) -> StorageError {
        self.store.unusable(what)
    }

    async fn remove_stale(&self, listed: &[ObjectMeta], now: DateTime<Utc>) {
        let stale = listed.iter().filter(|meta| now - meta.last_modified > STALE && !self.is_own(meta));
        let stale: Vec<_> = stale.map(|meta| meta.location.clone()).collect();
        if !stale.is_empty()
            && let Err(error) = self.store.delete_all(stale).await
        {
            tracing::debug!(%error, "leftovers of earlier probes were not removed");
        }
    }

    fn is_own(&self, meta: &ObjectMeta) -> bool {
        meta.location.prefix_matches(&self.folder)
    }

    async fn clean_up(&self) {
        let races = (0..RACES).map(|number| self.path(&format!("race-{number}")));
        if let Err(error) = self.store.delete_all(races.chain([self.path("again")]).collect()).await {
            tracing::debug!(%error, "the probe's objects were not removed; a later start removes them");
        }
        if let Some(local) = self.store.folder() {
            local.remove_empty_folder(&self.folder).await;
        }
    }
}

/// How far a time that was taken between `began` and `ended` is outside of them. Stores cut off fractions of a second.
fn skew(stored: DateTime<Utc>, began: DateTime<Utc>, ended: DateTime<Utc>) -> TimeDelta {
    if stored < began {
        stored - began
    } else if stored > ended {
        stored - ended
    } else {
        TimeDelta::zero()
    }
}

/// What is wrong with how the folder `root` is mounted, by Linux's list of mounts.
fn mount_fault(mountinfo: &str, root: &FsPath) -> Option<String> {
    let mount = mountinfo.lines().filter_map(Mount::parse).filter(|mount| root.starts_with(&mount.point));
    // The last of those at one place hides the others.
    let mount = mount.max_by_key(|mount| mount.point.components().count())?;
    let remembers_names = !mount.options.split(',').any(|option| option == "lookupcache=none");
    (mount.kind.starts_with("nfs") && remembers_names).then(|| {
        format!(
            "{} is mounted over NFS without the option lookupcache=none, so that a node may not see for a while what another \
             one has written or removed; add it to the mount's options",
            mount.point.display()
        )
    })
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug)]
struct Mount<'a> {
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        // Fields of the mount, ` - `, then file system, source and the file system's own options.
        let (mount, system) = line.split_once(" - ")?;
        let point = unescape(mount.split(' ').nth(4)?);
        let mut system = system.split(' ');
        Some(Self { point: PathBuf::from(point), kind: system.next()?, options: system.nth(1)? })
    }
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use std::path::Path as FsPath;

    use chrono::{DateTime, TimeDelta, Utc};

    use super::{Probe, mount_fault, skew};
    use crate::config::{Secret, Storage};
    use crate::model::{Clock, SystemClock};
    use crate::storage::{StorageError, Store};

    #[derive(Debug)]
    struct Off(TimeDelta);

    impl Clock for Off {
        fn now(&self) -> DateTime<Utc> {
            SystemClock.now() + self.0
        }
    }

    #[tokio::test]
    async fn memory_and_a_folder_pass_and_nothing_is_left_in_them() {
        let folder = tempfile::tempdir().unwrap();
        for url in ["memory://", folder.path().to_str().unwrap()] {
            let store = Store::open(url).unwrap();
            store.probe(&SystemClock).await.unwrap();
            assert!(store.list(&".probe".into()).await.unwrap().is_empty(), "{url}");
        }
        assert_eq!(std::fs::read_dir(folder.path().join(".probe")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_clock_that_is_far_away_is_refused() {
        let store = Store::open("memory://").unwrap();
        store.probe(&Off(TimeDelta::minutes(4))).await.unwrap();
        for (minutes, direction) in [(6, "behind"), (-6, "ahead of")] {
            let refused = store.probe(&Off(TimeDelta::minutes(minutes))).await.unwrap_err().to_string();
            assert!(refused.contains(direction) && refused.contains("300 s are the most"), "{refused}");
        }
    }

    #[tokio::test]
    async fn what_a_probe_that_was_cut_short_left_is_removed_after_an_hour() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        store.put(&".probe/old/race".into(), "x".into()).await.unwrap();
        store.put(&".probe/young/race".into(), "x".into()).await.unwrap();
        let hours_ago = std::fs::FileTimes::new().set_modified((SystemClock.now() - TimeDelta::minutes(61)).into());
        let old = std::fs::File::options().write(true).open(folder.path().join(".probe/old/race")).unwrap();
        old.set_times(hours_ago).unwrap();
        store.probe(&SystemClock).await.unwrap();
        let left = store.list(&".probe".into()).await.unwrap();
        assert_eq!(left.iter().map(|meta| meta.location.to_string()).collect::<Vec<_>>(), [".probe/young/race"]);
    }

    #[test]
    fn that_there_are_no_credentials_is_said_in_words() {
        let settings = Storage {
            access_key_id: Some("id".to_owned()),
            secret_access_key: Some(Secret::new("secret")),
            ..Storage::from("s3://bucket".parse::<crate::config::StorageUrl>().unwrap())
        };
        let store = Store::open_with(&settings).unwrap();
        let probe = Probe { store: &store, clock: &SystemClock, folder: "x".into() };
        let asked = "Error performing PUT http://169.254.169.254/latest/api/token: connection refused";
        let refused = probe.explained(StorageError::failed("create", "x", asked)).to_string();
        assert!(refused.starts_with("storage s3://bucket: there are no credentials"), "{refused}");
        let other = probe.explained(StorageError::failed("create", "x", "503"));
        assert!(matches!(other, StorageError::Failed { .. }), "{other:?}");
    }

    #[test]
    fn a_time_between_two_looks_at_our_clock_is_no_skew() {
        let at = |second| DateTime::from_timestamp(second, 0).unwrap();
        assert_eq!(skew(at(15), at(10), at(20)), TimeDelta::zero());
        assert_eq!(skew(at(7), at(10), at(20)), TimeDelta::seconds(-3));
        assert_eq!(skew(at(22), at(10), at(20)), TimeDelta::seconds(2));
    }

    #[test]
    fn nfs_needs_lookups_that_are_not_cached() {
        let root = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";
        let nfs = |options: &str| {
            format!("{root}2 1 0:40 / /mnt/a\\040b rw,noatime shared:2 - nfs4 server:/export rw,vers=4.2,{options}\n")
        };
        let fault = |mounts: &str, at: &str| mount_fault(mounts, FsPath::new(at));
        assert_eq!(fault(root, "/mnt/a b/store"), None);
        let refused = fault(&nfs("hard"), "/mnt/a b/store").unwrap();
        assert!(refused.contains("/mnt/a b") && refused.contains("lookupcache=none"), "{refused}");
        assert!(fault(&nfs("lookupcache=positive"), "/mnt/a b").is_some());
        assert_eq!(fault(&nfs("lookupcache=none,hard"), "/mnt/a b/store"), None);
        assert_eq!(fault(&nfs("hard"), "/mnt/a bc"), None, "another folder");
        assert_eq!(fault("", "/x"), None);
    }
}
