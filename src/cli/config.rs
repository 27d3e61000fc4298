//! `mcpg config check`: every fault of a configuration, with its place; starts nothing.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{CliError, output};
use crate::config::{ControlPlane, Faults, process_environment};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every fault of a control plane's configuration.
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

/// Reads a control plane's settings.
pub(super) fn load(file: &Path) -> Result<ControlPlane, NoSettings> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| NoSettings::Unreadable(CliError::could_not(file.display(), error)))?;
    ControlPlane::parse(&file.display().to_string(), &text, &process_environment).map_err(NoSettings::Faulty)
}

pub(super) fn run(command: &ConfigCommand) -> Result<(), CliError> {
    let ConfigCommand::Check { file } = command;
    match load(file) {
        Ok(_) => output::line(&format!("{}: ok", file.display())),
        Err(NoSettings::Unreadable(error)) => Err(error),
        Err(NoSettings::Faulty(faults)) => {
            output::line(&faults.to_string())?;
            let count = faults.iter().len();
            Err(CliError::No(format!("{}: {count} {}", file.display(), if count == 1 { "fault" } else { "faults" })))
        }
    }
}
