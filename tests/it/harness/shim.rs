//! File-system faults in a control plane while it runs: `tests/fixtures/faultshim.c`, preloaded into the process, and
//! the rules and log that it works by. The rules' format is at the top of that file.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::{run, tool};

/// Input/output error.
pub(crate) const EIO: i32 = 5;
/// File exists.
pub(crate) const EEXIST: i32 = 17;
/// Stale file handle: what NFS says of a file that another client replaced.
pub(crate) const ESTALE: i32 = 116;

/// A call that rules are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Opening a file or a folder, or asking for what is known of it.
    Read,
    Open,
    Link,
    Rename,
    Unlink,
    Fsync,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Open => "open",
            Self::Link => "link",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
            Self::Fsync => "fsync",
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Error(i32),
    DoneAndError(i32),
    Wait(PathBuf),
    Sleep(u64),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(errno) => write!(f, "err {errno}"),
            Self::DoneAndError(errno) => write!(f, "post {errno}"),
            Self::Wait(file) => write!(f, "wait {}", file.display()),
            Self::Sleep(milliseconds) => write!(f, "sleep {milliseconds}"),
        }
    }
}

/// What happens to calls on paths that contain a text. A rule that is written again is used up as it was before; a new
/// one is new.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    call: Call,
    path: String,
    action: Action,
    times: u32,
    number: u64,
}

impl Rule {
    fn new(call: Call, path: &str, action: Action) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { call, path: path.to_owned(), action, times: 0, number: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// The call is not done, and answered with an errno.
    pub(crate) fn fails(call: Call, path: &str, errno: i32) -> Self {
        Self::new(call, path, Action::Error(errno))
    }

    /// The call is done, and answered with an errno all the same.
    pub(crate) fn done_and_fails(call: Call, path: &str, errno: i32) -> Self {
        Self::new(call, path, Action::DoneAndError(errno))
    }

    /// The call waits until the gate opens.
    pub(crate) fn waits(call: Call, path: &str, gate: &Gate) -> Self {
        Self::new(call, path, Action::Wait(gate.file.clone()))
    }

    /// The call is done after a while.
    pub(crate) fn takes(call: Call, path: &str, milliseconds: u64) -> Self {
        Self::new(call, path, Action::Sleep(milliseconds))
    }

    /// Only the first call that matches.
    pub(crate) fn once(self) -> Self {
        self.times(1)
    }

    /// Only the first so many calls that match.
    pub(crate) fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }
}

/// What calls wait for. It is closed until it is dropped or opened.
#[derive(Debug)]
pub(crate) struct Gate {
    file: PathBuf,
}

impl Gate {
    pub(crate) fn open(self) {
        drop(self);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        std::fs::remove_file(&self.file).unwrap();
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Happened {
    pub(crate) call: String,
    pub(crate) path: String,
    /// `injected …`, `released` or `= RESULT`.
    pub(crate) outcome: String,
}

impl Happened {
    /// Whether a call was done and said so.
    pub(crate) fn succeeded(&self) -> bool {
        self.outcome == "= 0"
    }

    /// Whether a rule fired.
    pub(crate) fn was_injected(&self) -> bool {
        self.outcome.starts_with("injected")
    }
}

/// The rules and the log of the processes that are started with it.
#[derive(Debug)]
pub(crate) struct Shim {
    folder: TempDir,
    gates: AtomicU64,
}

impl Shim {
    /// A shim without rules: it only writes its log.
    pub(crate) fn new() -> Self {
        let shim = Self { folder: TempDir::with_prefix("mcpg-shim-").unwrap(), gates: AtomicU64::new(0) };
        shim.rules(&[]);
        shim
    }

    /// Puts rules in force, in place of those before.
    pub(crate) fn rules(&self, rules: &[Rule]) {
        let line = |rule: &Rule| {
            let Rule { call, path, action, times, number } = rule;
            format!("{} {path} {action} {times} {number}\n", call.name())
        };
        let text: String = rules.iter().map(line).collect();
        let new = self.folder.path().join("rules.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.rules_file()).unwrap();
    }

    /// A closed gate.
    pub(crate) fn gate(&self) -> Gate {
        let number = self.gates.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.path().join(format!("gate-{number}"));
        std::fs::write(&file, "").unwrap();
        Gate { file }
    }

    /// What has happened so far.
    pub(crate) fn log(&self) -> Vec<Happened> {
        let text = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let line = |line: &str| {
            let mut words = line.splitn(4, ' ').skip(1).map(str::to_owned);
            Some(Happened { call: words.next()?, path: words.next()?, outcome: words.next()? })
        };
        text.lines().filter_map(line).collect()
    }

    /// How many of the log's lines report a rule that fired on such a path.
    pub(crate) fn injected(&self, path: &str) -> usize {
        self.log().iter().filter(|line| line.was_injected() && line.path.contains(path)).count()
    }

    /// What a process must have in its environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_PRELOAD", library().as_os_str().to_owned()),
            ("FAULTSHIM_RULES", self.rules_file().into_os_string()),
            ("FAULTSHIM_LOG", self.log_file().into_os_string()),
        ]
    }

    fn rules_file(&self) -> PathBuf {
        self.folder.path().join("rules")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

/// The environment of a process whose wall clock is wrong by so many seconds.
pub(crate) fn clock_ahead(seconds: i64) -> Vec<(&'static str, OsString)> {
    vec![("LD_PRELOAD", library().as_os_str().to_owned()), ("FAULTSHIM_CLOCK", seconds.to_string().into())]
}

/// The library, compiled when it is first needed.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/faultshim.c");
        let digest = blake3::hash(&std::fs::read(&source).unwrap()).to_hex();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = folder.join(format!("faultshim-{}.so", &digest.as_str()[..16]));
        if !library.exists() {
            // Under a name of its own first: another run of the tests may be compiling it as well.
            let made = folder.join(format!("faultshim-{}.so", std::process::id()));
            let mut command = Command::new(tool("cc"));
            command.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&made).arg(&source);
            let output = run(command.args(["-ldl", "-lpthread"]));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            std::fs::rename(made, &library).unwrap();
        }
        library
    })
}
