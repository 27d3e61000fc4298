//! A file system of its own for a store, whose power can be cut and which can be made to hang: an ext4 image,
//! loop-mounted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{run, tool};

/// A loop-mounted ext4 file system.
#[derive(Debug)]
pub(crate) struct Disk {
    image: PathBuf,
    mount: PathBuf,
    _folder: TempDir,
}

/// A file system that hangs until this is dropped. Drop it before the processes that wait for the disk are ended.
#[derive(Debug)]
#[must_use]
pub(crate) struct Frozen {
    mount: PathBuf,
}

impl Disk {
    /// Makes and mounts one of 600 MB.
    pub(crate) fn new() -> Option<Self> {
        Self::of(600)
    }

    /// Makes and mounts one of so many MB.
    ///
    /// It takes root and loop devices. Without them the test fails, unless `MCPG_TEST_NO_ROOT=1` asks to go on without:
    /// then this is `None`, and says so.
    pub(crate) fn of(megabytes: u64) -> Option<Self> {
        let folder = TempDir::with_prefix("mcpg-disk-").unwrap();
        let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        call(Command::new(tool("mkfs.ext4")).arg("-q").arg(&image)).unwrap();
        let disk = Self { image, mount, _folder: folder };
        match disk.mount() {
            Ok(()) => Some(disk),
            Err(reason) if std::env::var("MCPG_TEST_NO_ROOT").is_ok_and(|value| value == "1") => {
                eprintln!("NOT TESTED, as MCPG_TEST_NO_ROOT=1 asks: no loop mount here: {reason}");
                None
            }
            Err(reason) => {
                panic!("a loop mount takes root and loop devices (MCPG_TEST_NO_ROOT=1 goes on without): {reason}")
            }
        }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// Fills it but for about `room` bytes. Gives the file whose deletion makes it empty again.
    pub(crate) fn fill(&self, room: u64) -> PathBuf {
        let (filler, spare) = (self.mount.join("filler"), self.mount.join("spare"));
        std::fs::write(&spare, vec![1; usize::try_from(room).unwrap()]).unwrap();
        let mut file = std::fs::File::create(&filler).unwrap();
        let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        file.sync_all().unwrap();
        std::fs::remove_file(spare).unwrap();
        filler
    }

    /// Stops the file system at once, as a power cut does: what was not made durable is gone.
    ///
    /// An fsync that is under way meanwhile may come back without an error although its journal has ended (jbd2 finds
    /// the transaction neither running nor committing). With the power gone nobody would have received it, so what is
    /// acknowledged from the moment before this on must not be taken for a promise.
    pub(crate) fn cut_power(&self) {
        call(Command::new(tool("xfs_io")).args(["-x", "-c", "shutdown"]).arg(&self.mount)).unwrap();
    }

    /// Brings it up again after a power cut. Nobody may hold a file of it open.
    pub(crate) fn power_up(&self) {
        call(Command::new(tool("umount")).arg(&self.mount)).unwrap();
        self.mount().unwrap();
    }

    /// Makes it read-only, or writable again. It cannot be made read-only while a file is open to be written.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        let mode = if read_only { "remount,ro" } else { "remount,rw" };
        let remount = || call(Command::new(tool("mount")).args(["-o", mode]).arg(&self.mount));
        let (began, mut outcome) = (Instant::now(), remount());
        while outcome.is_err() && began.elapsed() < Duration::from_secs(60) {
            outcome = remount();
        }
        outcome.unwrap();
    }

    /// Makes every write hang.
    pub(crate) fn freeze(&self) -> Frozen {
        call(Command::new(tool("fsfreeze")).arg("-f").arg(&self.mount)).unwrap();
        Frozen { mount: self.mount.clone() }
    }

    fn mount(&self) -> Result<(), String> {
        call(Command::new(tool("mount")).args(["-o", "loop"]).arg(&self.image).arg(&self.mount))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(call(Command::new(tool("umount")).arg("-l").arg(&self.mount)));
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(call(Command::new(tool("fsfreeze")).arg("-u").arg(&self.mount)));
    }
}

fn call(command: &mut Command) -> Result<(), String> {
    let output = run(command);
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
