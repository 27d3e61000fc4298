//! What was measured, beside its budget: a Markdown table for people, JSON for programs.
//!
//! A verdict is given only by a whole run of an optimised build. Whatever was measured at less than the size that its
//! budget is for says so in the verdict.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::Result;
use super::figures::readable;
use super::machine::Machine;

/// What the project asks of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// The figure should be this or more.
    AtLeast(f64),
    /// The figure should be this or less.
    AtMost(f64),
}

impl Budget {
    /// By which share of the budget a figure misses it.
    fn missed_by(self, value: f64) -> Option<f64> {
        let (limit, excess) = match self {
            Self::AtLeast(limit) => (limit, limit - value),
            Self::AtMost(limit) => (limit, value - limit),
        };
        // A figure that is no number meets nothing.
        (excess.is_nan() || excess > 0.0).then_some(excess / limit)
    }
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Finding {
    section: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    budget: Option<Budget>,
    only: Option<String>,
    note: String,
    detail: Value,
}

impl Finding {
    /// A figure of a section.
    pub(crate) fn new(section: &'static str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let (what, note) = (what.into(), String::new());
        Self { section, what, value, unit, budget: None, only: None, note, detail: Value::Null }
    }

    /// What is asked of it.
    pub(crate) fn budget(self, budget: Budget) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// The circumstances under which it was measured, where its budget is for harder ones.
    pub(crate) fn only(self, circumstances: impl Into<String>) -> Self {
        Self { only: Some(circumstances.into()), ..self }
    }

    /// What else a reader should know.
    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// More of what a reader should know.
    pub(crate) fn also(mut self, note: impl AsRef<str>) -> Self {
        self.note.push_str("; ");
        self.note.push_str(note.as_ref());
        self
    }

    /// Everything measured along with it, for the JSON.
    pub(crate) fn detail(self, detail: Value) -> Self {
        Self { detail, ..self }
    }

    fn budget_text(&self) -> String {
        match self.budget {
            None => String::new(),
            Some(Budget::AtLeast(limit)) => format!("≥ {} {}", readable(limit), self.unit),
            Some(Budget::AtMost(limit)) => format!("≤ {} {}", readable(limit), self.unit),
        }
    }

    fn verdict(&self, judged: bool) -> String {
        match self.budget {
            None => String::new(),
            Some(_) if !judged => "not judged".to_owned(),
            Some(budget) => match (budget.missed_by(self.value), &self.only) {
                (Some(share), _) => format!("missed by {} %", readable(share * 100.0)),
                (None, None) => "met".to_owned(),
                (None, Some(only)) => format!("met {only}"),
            },
        }
    }
}

/// All findings of a run.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    judged: bool,
    findings: Vec<Finding>,
    failures: Vec<(&'static str, String)>,
}

impl Report {
    /// A run on this machine; `judged` tells whether its figures may be held against the budgets.
    pub(crate) fn new(machine: Machine, judged: bool) -> Self {
        Self { machine, judged, findings: Vec::new(), failures: Vec::new() }
    }

    /// Takes what a section found, or why it found nothing.
    pub(crate) fn take(&mut self, section: &'static str, found: Result<Vec<Finding>>) {
        match found {
            Ok(found) => self.findings.extend(found),
            Err(error) => {
                say(&format!("{section}: failed: {error}"));
                self.failures.push((section, error.to_string()));
            }
        }
    }

    /// The value of a finding, by its name.
    pub(crate) fn value(&self, what: &str) -> Option<f64> {
        self.findings.iter().find(|finding| finding.what == what).map(|finding| finding.value)
    }

    /// Whether every section could be measured.
    pub(crate) fn is_whole(&self) -> bool {
        self.failures.is_empty()
    }

    /// The table, with the machine above it.
    pub(crate) fn markdown(&self) -> Result<String> {
        let mut text = format!("{}\n\n", self.machine);
        if !self.judged {
            text.push_str(
                "**Not a measurement**: sizes were cut, or the build is not optimised. No budget is judged.\n\n",
            );
        }
        text.push_str("| what | budget | measured | verdict | beside it |\n|---|--:|--:|---|---|\n");
        for finding in &self.findings {
            let Finding { what, value, unit, note, .. } = finding;
            let (budget, verdict) = (finding.budget_text(), finding.verdict(self.judged));
            writeln!(text, "| {what} | {budget} | {} {unit} | {verdict} | {note} |", readable(*value))?;
        }
        for (section, reason) in &self.failures {
            writeln!(text, "\nThe section `{section}` could not be measured: {reason}")?;
        }
        Ok(text)
    }

    fn json(&self) -> Value {
        let finding = |finding: &Finding| {
            let budget = match finding.budget {
                None => Value::Null,
                Some(Budget::AtLeast(limit)) => json!({ "at_least": limit }),
                Some(Budget::AtMost(limit)) => json!({ "at_most": limit }),
            };
            json!({
                "section": finding.section, "what": finding.what, "value": finding.value, "unit": finding.unit, "budget": budget,
                "verdict": finding.verdict(self.judged), "note": finding.note, "detail": finding.detail,
            })
        };
        let failure = |(section, reason): &(&str, String)| json!({ "section": section, "reason": reason });
        json!({
            "machine": self.machine, "judged": self.judged, "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "failures": self.failures.iter().map(failure).collect::<Vec<_>>(),
        })
    }

    /// Prints the table, and writes the JSON to `file`.
    ///
    /// # Errors
    /// When either cannot be written.
    pub(crate) fn publish(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(file, serde_json::to_vec_pretty(&self.json())?)?;
        say(&format!("written to {}", file.display()));
        std::io::stdout().write_all(self.markdown()?.as_bytes())?;
        Ok(())
    }
}

/// Says on standard error what is going on.
pub(crate) fn say(text: &str) {
    eprintln!("budgets: {text}");
}
