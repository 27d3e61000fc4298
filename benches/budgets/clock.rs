//! The wall clock of a control plane, moved by the bench, so that days pass in minutes. Timers go on as they are: what is
//! done at an interval is asked for instead.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use mcpg::model::{Clock as _, SystemClock};
use tempfile::TempDir;

use super::Result;

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct MovedClock {
    folder: TempDir,
    offset: File,
}

impl MovedClock {
    /// One that is right yet. Compiles the library that stands before the system's clock.
    ///
    /// # Errors
    /// When there is no C compiler.
    pub(crate) fn new() -> Result<Self> {
        let folder = TempDir::with_prefix("mcpg-budgets-clock-")?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/faultshim.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(library(&folder)).arg(source);
        if !compiler.args(["-ldl", "-lpthread"]).status()?.success() {
            return Err("cc does not compile tests/fixtures/faultshim.c".into());
        }
        let offset = File::create(folder.path().join("offset"))?;
        offset.write_all_at(&0_i64.to_ne_bytes(), 0)?;
        Ok(Self { folder, offset })
    }

    /// What a process must have in its environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let offset = self.folder.path().join("offset");
        vec![("LD_PRELOAD", library(&self.folder).into()), ("FAULTSHIM_CLOCK_FILE", offset.into())]
    }

    /// Sets it, to a second.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn set(&self, to: DateTime<Utc>) -> Result<()> {
        // At the earliest what is asked for.
        let ahead = (to - SystemClock.now()).num_seconds() + 1;
        Ok(self.offset.write_all_at(&ahead.to_ne_bytes(), 0)?)
    }
}

fn library(folder: &TempDir) -> PathBuf {
    folder.path().join("faultshim.so")
}

/// The beginning of the next day, in UTC.
pub(crate) fn next_day() -> DateTime<Utc> {
    (SystemClock.now() + TimeDelta::days(1)).date_naive().and_time(NaiveTime::MIN).and_utc()
}
