//! `mcpg config check`: every fault of a configuration and of the policies it names, with its place; starts nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;

use super::{CliError, output};
use crate::config::{ControlPlane, Environment, Faults, Gateway, Kind, process_environment};
use crate::gateway::policy::{Abilities, Policy};
use crate::model::SystemClock;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every fault of a configuration, a control plane's or a gateway's.
    Check {
        /// The YAML file.
        file: PathBuf,
    },
}

/// Why there are no settings.
pub(super) enum NoSettings {
    /// The file cannot be read.
    Unreadable(CliError),
    /// The file has faults.
    Faulty(Faults),
}

impl From<NoSettings> for CliError {
    /// What a program says that was to run with them.
    fn from(none: NoSettings) -> Self {
        match none {
            NoSettings::Unreadable(error) => error,
            NoSettings::Faulty(faults) => Self::CouldNot(format!("the configuration has faults\n{faults}")),
        }
    }
}

/// Reads a control plane's settings.
pub(super) fn load(file: &Path) -> Result<ControlPlane, NoSettings> {
    parse(file, ControlPlane::parse)
}

/// Reads a gateway's settings.
pub(super) fn load_gateway(file: &Path) -> Result<Gateway, NoSettings> {
    parse(file, Gateway::parse)
}

fn parse<T>(file: &Path, parse: impl Fn(&str, &str, Environment<'_>) -> Result<T, Faults>) -> Result<T, NoSettings> {
    let text = read(file).map_err(NoSettings::Unreadable)?;
    // Some editors put a byte order mark before it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    parse(&file.display().to_string(), text, &process_environment).map_err(NoSettings::Faulty)
}

fn read(file: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(file).map_err(|error| CliError::could_not(file.display(), error))
}

/// Reads the policies that a gateway's settings name.
fn policies(settings: &Gateway) -> Result<(), NoSettings> {
    Policy::start(&settings.policy, &settings.workspace, Abilities::default(), Arc::new(SystemClock))
        .map(drop)
        .map_err(NoSettings::Faulty)
}

pub(super) fn run(command: &ConfigCommand) -> Result<(), CliError> {
    let ConfigCommand::Check { file } = command;
    let checked = match Kind::of(&read(file)?) {
        Kind::ControlPlane => load(file).map(drop),
        Kind::Gateway => load_gateway(file).and_then(|settings| policies(&settings)),
    };
    match checked {
        Ok(()) => output::line(&format!("{}: ok", file.display())),
        Err(NoSettings::Unreadable(error)) => Err(error),
        Err(NoSettings::Faulty(faults)) => {
            output::line(&faults.to_string())?;
            let count = faults.iter().len();
            Err(CliError::No(format!("{}: {count} {}", file.display(), if count == 1 { "fault" } else { "faults" })))
        }
    }
}
