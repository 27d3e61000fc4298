//! The budgets of this project, each beside what this machine gets, with the real program.
//!
//! `make bench`, or `cargo bench --bench budgets -- [SECTION…] [--quick] [--history SAMPLES]`; `--help` says more. Each
//! section starts a control plane of its own, with its defaults unless it says otherwise, on a new folder and a free
//! loopback port, and puts load on it from another process, on the same machine: what the load costs is taken from the
//! same cores, and said.
//!
//! The table holds nothing that was not measured in the same run. A budget that is missed says by how much; a figure
//! taken at a smaller size than its budget is for says so; a section that fails is reported as failed, and the run then
//! ends with exit code 1.

#![expect(clippy::print_stderr, reason = "a program for people, who want to see how far it is")]

mod aged;
mod audit;
mod bucket;
mod clock;
mod dashboard;
mod encode;
mod figures;
mod gateway;
mod ingest;
mod load;
mod machine;
mod memory;
mod nodes;
mod options;
mod process;
mod query;
mod replay;
mod report;
mod s3;
mod samples;
mod scrape;
mod server;
mod start;
mod week;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use mcpg::model::{Clock, SystemClock};

use machine::Machine;
use options::{Options, Section};
use report::{Report, say};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;

/// The program's own allocator, so that what is measured in this process is what the program would get.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Measures everything asked for; whether all of it could be measured.
fn run(options: &Options) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let machine = Machine::look(SystemClock.now(), &std::env::temp_dir())?;
    let mut report = Report::new(machine, !options.is_quick() && !cfg!(debug_assertions));
    for section in options.sections() {
        say(section.name());
        let found = match section {
            Section::Encode => encode::measure(options),
            Section::Ingest => runtime.block_on(ingest::measure(options, report.value(encode::LIMIT))),
            Section::Memory => runtime.block_on(memory::measure(options)),
            Section::Scrape => runtime.block_on(scrape::measure(options)),
            Section::Query => runtime.block_on(query::measure(options)),
            Section::Dashboard => runtime.block_on(dashboard::measure(options)),
            Section::Audit => runtime.block_on(audit::measure(options)),
            Section::Gateway => runtime.block_on(gateway::measure(options)),
            Section::Replay => runtime.block_on(replay::measure(options)),
            Section::Nodes => runtime.block_on(nodes::measure(options)),
            Section::Start => runtime.block_on(start::measure(options)),
            Section::Bucket => runtime.block_on(bucket::measure(options)),
            Section::Aged => runtime.block_on(aged::measure(options)),
            Section::Week => runtime.block_on(week::measure(options)),
        };
        report.take(section.name(), found);
    }
    // The folder of temporary files that cargo gives to benches lies in its target folder, wherever that is.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("cargo's target folder has no name")?;
    report.publish(&target.join("bench/budgets.json"))?;
    Ok(report.is_whole())
}
