//! The command line, one file a subcommand.
//!
//! Exit codes, for scripts to rely on: 0 done, 1 the answer is no (a query was refused, a configuration has faults), 2
//! wrong use or could not run. What was asked for goes to standard output, everything else to standard error; a reader
//! that goes away (`mcpg sql … | head`) ends the program quietly.

mod audit;
mod audit_keeping;
mod audit_proof;
mod config;
mod control_plane;
mod demo;
mod gateway;
mod hardening;
mod http;
pub mod loadgen;
mod output;
mod payload;
mod sql;
mod store;
mod token;
mod tokens;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Stack of the runtime's threads. Planning SQL recurses deeply, and threads only use of it what they need.
const STACK_BYTES: usize = 8 << 20;

/// MCPG's observability plane: fleet metrics, SQL over every tool call, durable ingest.
#[derive(Debug, Parser)]
#[command(name = "mcpg", version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything on this machine, nothing to configure: control plane, gateway, MCP servers and agents.
    Demo(demo::DemoArgs),
    /// Run the control plane; without a configuration it keeps its data in ./mcpg-data.
    ControlPlane(control_plane::ControlPlaneArgs),
    /// Run the MCP gateway in front of the MCP servers of its configuration.
    Gateway(gateway::GatewayArgs),
    /// Run an SQL query on a control plane.
    Sql(sql::SqlArgs),
    /// Send realistic samples to a control plane at a chosen rate.
    Loadgen(loadgen::LoadgenArgs),
    /// Verify and export audit ledgers.
    Audit {
        #[command(subcommand)]
        command: audit::AuditCommand,
    },
    /// See, export and open captured payloads; rotate what wraps their keys.
    Payload {
        #[command(subcommand)]
        command: payload::PayloadCommand,
    },
    /// See, verify and copy what a control plane stores.
    Store {
        #[command(subcommand)]
        command: store::StoreCommand,
    },
    /// Check a configuration without starting anything.
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Make API tokens and their hashes.
    Token {
        #[command(subcommand)]
        command: token::TokenCommand,
    },
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The answer is no: exit code 1.
    #[error("{0}")]
    No(String),
    /// Wrong use, or it could not run: exit code 2.
    #[error("{0}")]
    CouldNot(String),
    /// The reader of the output has closed the pipe: not an error, exit code 0.
    #[error("the output is closed")]
    OutputClosed,
}

impl CliError {
    /// It could not run: what was done, and why it failed.
    pub(crate) fn could_not(what: impl Display, why: impl Display) -> Self {
        Self::CouldNot(format!("{what}: {why}"))
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::No(_) => ExitCode::from(1),
            Self::CouldNot(_) => ExitCode::from(2),
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

/// Runs the command that `arguments`, the program's name first, ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version are answers; anything else is wrong use. A closed output is no reason to fail.
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            if !matches!(error, CliError::OutputClosed) {
                // Ignore the error: standard error is closed.
                let _ = writeln!(std::io::stderr(), "mcpg: {error}");
            }
            error.exit_code()
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Demo(args) => block_on(demo::run(args))?,
        Command::ControlPlane(args) => block_on(control_plane::run(args))?,
        Command::Gateway(args) => block_on(gateway::run(args))?,
        Command::Sql(args) => block_on(sql::run(args))?,
        Command::Loadgen(args) => {
            return block_on(async { loadgen::run(args).await.map_err(|error| CliError::CouldNot(error.to_string())) });
        }
        Command::Audit { command } => block_on(audit::run(command))?,
        Command::Payload { command } => block_on(payload::run(command))?,
        Command::Store { command } => block_on(store::run(command))?,
        Command::Config { command } => config::run(&command)?,
        Command::Token { command } => token::run(&command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn block_on<T>(command: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    // Two crypto libraries are linked in, so TLS needs to be given the one to use. An error says that one was given
    // before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .map_err(|error| CliError::could_not("the runtime does not start", error))?;
    let outcome = runtime.block_on(command);
    // Work that is still on its way is not waited for: what matters has been drained.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
