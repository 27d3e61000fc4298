//! What Linux reports of a process: the time it took, and the memory it holds.

use super::Result;

/// Clock ticks a second in `/proc`: a constant of Linux's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory of a process, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: u64,
    /// The most that ever was resident.
    pub(crate) peak: u64,
}

/// Seconds that the threads of a process took so far, in user and kernel mode.
///
/// # Errors
/// When there is no such process.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    ticks(&pid.to_string(), [14, 15])
}

/// Seconds that all child processes took which ended and were waited for: the difference of two calls is what the child
/// cost that ended in between, to the last tick.
///
/// # Errors
/// When there is no `/proc`.
pub(crate) fn ended_children_cpu_seconds() -> Result<f64> {
    ticks("self", [16, 17])
}

/// The sum of two fields of `/proc/<process>/stat`, numbered from 1 as in proc(5), in seconds.
fn ticks(process: &str, fields: [usize; 2]) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the program's name in parentheses, and may hold spaces itself; the third comes after it.
    let (_, rest) = stat.rsplit_once(") ").ok_or("no fields in /proc/…/stat")?;
    let mut sum = 0.0;
    for field in fields {
        let ticks: f64 = rest.split(' ').nth(field - 3).ok_or("a field is missing in /proc/…/stat")?.parse()?;
        sum += ticks;
    }
    Ok(sum / TICKS_PER_SECOND)
}

/// The memory of a process.
///
/// # Errors
/// When there is no such process.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |key: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).ok_or("the process has ended")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    };
    Ok(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
}
