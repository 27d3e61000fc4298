//! The policy files: which there are, what is in them, and where in them a policy stands.

use std::fmt::Display;
use std::path::PathBuf;

use crate::config::{Fault, Faults};

/// The largest policy file, and the most files, that are read.
const MAX_FILE: u64 = 4 << 20;
const MAX_FILES: usize = 10_000;

/// One policy file.
#[derive(Debug)]
pub(super) struct Source {
    /// Its path, as the pattern gave it.
    pub(super) file: String,
    /// Its content.
    pub(super) text: String,
}

/// All policy files, sorted by path, each once.
#[derive(Debug)]
pub(super) struct Sources {
    files: Vec<Source>,
    digest: String,
}

impl Sources {
    /// The files that match the patterns. A pattern that matches none is a fault: with it would go what it forbids.
    pub(super) fn read(patterns: &[String]) -> Result<Self, Faults> {
        let (mut paths, mut faults) = (Vec::<PathBuf>::new(), Vec::new());
        for pattern in patterns {
            let found = match glob::glob(pattern) {
                Ok(found) => found,
                Err(error) => {
                    faults.push(fault(pattern, 0, "", format!("no glob pattern: {}", error.msg)));
                    continue;
                }
            };
            let before = paths.len();
            for path in found {
                match path {
                    Ok(path) if path.is_dir() => {}
                    Ok(path) => paths.push(path),
                    Err(error) => faults.push(unreadable(&error.path().display(), error.error())),
                }
            }
            if paths.len() == before {
                faults.push(fault(pattern, 0, "", "no policy file matches; add one, or say `policy: deny_all`"));
            }
        }
        paths.sort();
        paths.dedup();
        if paths.len() > MAX_FILES {
            faults.push(fault("policy.files", 0, "", format!("more than {MAX_FILES} files match")));
            paths.clear();
        }
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let file = path.display().to_string();
            match std::fs::metadata(&path) {
                Ok(found) if found.len() > MAX_FILE => {
                    faults.push(fault(&file, 0, "", "larger than 4 MiB; part it into several files"));
                    continue;
                }
                _ => {}
            }
            match std::fs::read_to_string(&path) {
                Ok(text) => files.push(Source { file, text }),
                Err(error) => faults.push(unreadable(&file, &error)),
            }
        }
        match Faults::of(faults) {
            Some(faults) => Err(faults),
            None => Ok(Self::of(files)),
        }
    }

    /// These files.
    pub(super) fn of(files: Vec<Source>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for source in &files {
            for part in [source.file.as_bytes(), source.text.as_bytes()] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
        }
        Self { files, digest: hasher.finalize().to_hex().to_string() }
    }

    /// The files, sorted by path.
    pub(super) fn files(&self) -> &[Source] {
        &self.files
    }

    /// The hash of all names and contents, as hex.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }
}

impl Source {
    /// A fault at a byte of the file.
    pub(super) fn fault(&self, offset: usize, policy: &str, message: impl Into<String>) -> Fault {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Fault {
            file: self.file.clone(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            path: policy.to_owned(),
            message: message.into(),
        }
    }

    /// The line of a byte of the file, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.text.get(..offset).unwrap_or(&self.text).matches('\n').count() + 1
    }
}

fn unreadable(file: &impl Display, why: &std::io::Error) -> Fault {
    fault(&file.to_string(), 0, "", format!("cannot be read: {why}"))
}

fn fault(file: &str, line: usize, policy: &str, message: impl Into<String>) -> Fault {
    Fault { file: file.to_owned(), line: line + 1, column: 1, path: policy.to_owned(), message: message.into() }
}
