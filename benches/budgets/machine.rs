//! What the figures were measured on.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Result;
use super::figures::{median, ms, readable};

/// How often a durable write is timed.
const WRITES: usize = 30;

/// The machine, the build, the day.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    date: String,
    version: &'static str,
    commit: Option<String>,
    optimised: bool,
    cores: usize,
    processor: String,
    memory_gib: f64,
    kernel: String,
    file_system: String,
    /// Median time of writing 4 KiB and making it durable: every acknowledgement waits for at least one.
    durable_write_ms: f64,
}

impl Machine {
    /// Looks at this machine; `folder` is where the data will lie.
    ///
    /// # Errors
    /// When `/proc` or the folder cannot be read or written.
    pub(crate) fn look(now: DateTime<Utc>, folder: &Path) -> Result<Self> {
        let field = |file: &str, key: &str| -> Result<Option<String>> {
            let text = std::fs::read_to_string(file)?;
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            Ok(line.map(|rest| rest.trim_start_matches([':', ' ', '\t']).trim().to_owned()))
        };
        let memory = field("/proc/meminfo", "MemTotal")?.unwrap_or_default();
        let kib: f64 = memory.trim_end_matches(" kB").parse()?;
        Ok(Self {
            date: now.format("%Y-%m-%d %H:%M UTC").to_string(),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            optimised: !cfg!(debug_assertions),
            cores: std::thread::available_parallelism()?.get(),
            processor: field("/proc/cpuinfo", "model name")?.unwrap_or_else(|| "unnamed processor".to_owned()),
            memory_gib: kib / f64::from(1 << 20),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(&folder.canonicalize()?)?,
            durable_write_ms: durable_write(folder)?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if self.optimised { "release" } else { "unoptimised" };
        write!(f, "{}, mcpg {}", self.date, self.version)?;
        if let Some(commit) = &self.commit {
            write!(f, " ({commit})")?;
        }
        write!(
            f,
            ", {build} build. {} cores of {}, {} GiB of memory, Linux {}, data on {} (writing 4 KiB durably: {} ms).",
            self.cores,
            self.processor,
            readable(self.memory_gib),
            self.kernel,
            self.file_system,
            readable(self.durable_write_ms)
        )
    }
}

/// The commit of this build, where git knows.
fn commit() -> Option<String> {
    let described = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let name = String::from_utf8(described.stdout).ok()?.trim().to_owned();
    (described.status.success() && !name.is_empty()).then_some(name)
}

/// The type of the file system that a folder lies on: that of the longest mount point above it.
fn file_system(folder: &Path) -> Result<String> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let above = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (mount, kind) = (fields.next()?, fields.next()?);
        folder.starts_with(mount).then_some((mount.len(), kind))
    });
    Ok(above.max_by_key(|(depth, _)| *depth).map_or("an unknown file system", |(_, kind)| kind).to_owned())
}

fn durable_write(folder: &Path) -> Result<f64> {
    let scratch = tempfile::tempdir_in(folder)?;
    let mut file = File::create(scratch.path().join("durable"))?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let began = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        times.push(ms(began.elapsed()));
    }
    Ok(median(&times))
}
