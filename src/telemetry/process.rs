//! Figures of this process, as Linux tells them.

/// Clock ticks a second in `/proc`: a constant of Linux's interface to programs, whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;

/// Figures of this process at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    /// Resident memory.
    pub(crate) resident_bytes: i64,
    /// Open file descriptors.
    pub(crate) open_files: i64,
    /// User and system time spent.
    pub(crate) cpu_seconds: f64,
}

/// The figures now; `None` where there is no `/proc`.
pub(crate) fn figures() -> Option<Figures> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
    // The second field, the program's name, may hold blanks and parentheses; the last ')' ends it.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    // Fields 14 and 15 of proc_pid_stat(5), utime and stime; the first one here is field 3.
    let (user, system): (f64, f64) = (fields.nth(11)?.parse().ok()?, fields.next()?.parse().ok()?);
    let open_files = i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()?;
    Some(Figures { resident_bytes: kib * 1024, open_files, cpu_seconds: (user + system) / TICKS_PER_SECOND })
}
