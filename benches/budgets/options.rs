//! What to measure, and how large.

use std::time::Duration;

use clap::{Parser, ValueEnum};

/// By how much `--quick` divides every size.
const QUICK: u64 = 100;

/// Measures the budgets of this project on this machine, with the real program.
///
/// Prints a Markdown table on standard output, and writes bench/budgets.json in cargo's target folder. Data goes into a
/// temporary folder (set TMPDIR to choose the disk) and is removed afterwards. Needs the Python environment that `make
/// bench` installs.
#[derive(Debug, Parser)]
#[command(name = "budgets")]
pub(crate) struct Options {
    /// What to measure [default: everything]
    #[arg(value_enum, value_name = "SECTION")]
    sections: Vec<Section>,
    /// Divide all sizes by 100: shows that everything works, and judges nothing
    #[arg(long)]
    quick: bool,
    /// Samples that the queries of the sections `query` and `dashboard` run over
    #[arg(long, value_name = "SAMPLES", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    history: u64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// What one core encodes to Parquet with nothing else to do
    Encode,
    /// Durable ingest over HTTP (measures `encode` too: one budget is a share of it)
    Ingest,
    /// Resident memory at 50,000 samples/s
    Memory,
    /// Scrapes, whatever the history
    Scrape,
    /// Stored bytes, SQL beside DuckDB and ClickHouse on the same files, dashboard queries from the rollups
    Query,
    /// Every query that the dashboard's first view and a box on it send, for one hour and for 24
    Dashboard,
    /// The audit ledger: events in, bytes, verifying, proofs, many orgs
    Audit,
    /// What the gateway adds to a call, carries and holds, with all streams on and with all off
    Gateway,
    /// Restart after kill -9, with a million samples not flushed
    Replay,
    /// Batches a second and their latency with one, two and three nodes on one store: a folder, and a bucket at 30 ms a
    /// request
    Nodes,
    /// A start with 100, 1,000 and 10,000 orgs, and the memory of an idle one
    Start,
    /// Requests and bytes of an org and day in a bucket, busy and idle
    Bucket,
    /// Stored bytes a sample after a day of flushes by a clock that is moved, at four rates
    Aged,
    /// A week of fifty orgs of three sizes by such a clock: files, bytes, memory, processor time of upkeep
    Week,
}

impl Options {
    /// The sections to measure, each once, in a fixed order.
    pub(crate) fn sections(&self) -> impl Iterator<Item = Section> {
        let wanted = |section: &Section| {
            let needed = *section == Section::Encode && self.sections.contains(&Section::Ingest);
            self.sections.is_empty() || self.sections.contains(section) || needed
        };
        Section::value_variants().iter().copied().filter(wanted)
    }

    /// Whether sizes are too small for figures to mean anything.
    pub(crate) fn is_quick(&self) -> bool {
        self.quick
    }

    /// A number of samples or of repetitions.
    pub(crate) fn count(&self, whole: u64) -> u64 {
        if self.quick { (whole / QUICK).max(1) } else { whole }
    }

    /// How long to go on; a second at least.
    pub(crate) fn period(&self, whole: Duration) -> Duration {
        if self.quick { (whole / QUICK as u32).max(Duration::from_secs(1)) } else { whole }
    }

    /// Samples that queries run over.
    pub(crate) fn history(&self) -> u64 {
        self.count(self.history)
    }
}

impl Section {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::Ingest => "ingest",
            Self::Memory => "memory",
            Self::Scrape => "scrape",
            Self::Query => "query",
            Self::Dashboard => "dashboard",
            Self::Audit => "audit",
            Self::Gateway => "gateway",
            Self::Replay => "replay",
            Self::Nodes => "nodes",
            Self::Start => "start",
            Self::Bucket => "bucket",
            Self::Aged => "aged",
            Self::Week => "week",
        }
    }
}
