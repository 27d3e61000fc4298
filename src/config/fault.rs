//! What is wrong with a configuration, and where.

use std::fmt;

/// A place in a file; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Line.
    pub(crate) line: usize,
    /// Column.
    pub(crate) column: usize,
}

impl Position {
    /// Where a file starts.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// One fault of a configuration file.
///
/// Shown as `file:line:column: path: what is wrong, and what to do`, which editors and CI logs turn into a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file's name as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The setting, like `tokens[0].hash`; empty when the fault is of the whole file.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Every fault of a configuration file, in the file's order; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// One fault.
    pub(crate) fn one(fault: Fault) -> Self {
        Self(vec![fault])
    }

    /// These faults, if there are any.
    pub(crate) fn of(faults: Vec<Fault>) -> Option<Self> {
        (!faults.is_empty()).then_some(Self(faults))
    }

    /// The faults, in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    /// A line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Collects the faults of one file.
#[derive(Debug)]
pub(crate) struct Collector<'a> {
    file: &'a str,
    faults: Vec<Fault>,
}

impl<'a> Collector<'a> {
    /// Nothing is wrong with `file` yet.
    pub(crate) fn new(file: &'a str) -> Self {
        Self { file, faults: Vec::new() }
    }

    /// Adds a fault.
    pub(crate) fn add(&mut self, at: Position, path: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault {
            file: self.file.to_owned(),
            line: at.line,
            column: at.column,
            path: path.into(),
            message: message.into(),
        });
    }

    /// Whether something is wrong with the setting at `path` or below it.
    pub(crate) fn has(&self, path: &str) -> bool {
        let within =
            |found: &str| found.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        self.faults.iter().any(|fault| within(&fault.path))
    }

    /// `value`, if nothing was wrong.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, Faults> {
        if self.faults.is_empty() {
            return Ok(value);
        }
        self.faults.sort_by_key(|fault| (fault.line, fault.column));
        Err(Faults(self.faults))
    }
}
