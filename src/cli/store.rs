//! `mcpg store`: what lies on a store, whether it is sound, the repair of an org, and a copy of all.
//!
//! The commands work on the store itself, with the ledger's key, also while control planes run on it. The answer goes
//! to standard output, as JSON unless that is a terminal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::control_plane::{existing_signing_keys, settings_of, storage_at};
use super::{CliError, output};
use crate::config::{ControlPlane, StorageUrl};
use crate::inspect::{self, Copied, Finding, Inspector, Progress, Repair, Report};
use crate::keys::{self, KeyError};
use crate::model::OrgName;
use crate::storage::{StorageError, Store};

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// What lies on the store, by org.
    Status(StoreArgs),
    /// Verify all that lies on the store: exit code 0 sound, 1 not sound, 2 could not check.
    Check(StoreArgs),
    /// Repair an org that is stopped, giving up by name what cannot be read of it.
    Repair(RepairArgs),
    /// Copy the store, consistently, to another one that is empty, and verify the copy.
    Copy(CopyArgs),
}

#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    /// The control plane's configuration: its storage, and the key of its ledgers.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store (a folder, file:///folder or s3://bucket/prefix), instead of the configured one.
    #[arg(long, value_name = "URL")]
    storage: Option<StorageUrl>,
    /// How the answer is written: by default as JSON, on a terminal as text.
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The org.
    #[arg(long)]
    org: OrgName,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Give up what cannot be read. Without it, nothing is done where something would be lost.
    #[arg(long)]
    accept_loss: bool,
}

#[derive(Debug, Args)]
pub(super) struct CopyArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The store to copy to. It must be empty.
    #[arg(long, value_name = "URL")]
    to: StorageUrl,
    /// Copy the wrapped keys of sealed payloads too, which are left out otherwise: a copy with them opens what a KEK of
    /// that time unwraps.
    #[arg(long)]
    with_payload_keys: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One document.
    Json,
    /// For people.
    Text,
}

impl StoreArgs {
    fn settings(&self) -> Result<ControlPlane, CliError> {
        settings_of(self.config.as_deref(), self.storage.clone())
    }

    fn is_json(&self) -> bool {
        let by_reader = || if std::io::stdout().is_terminal() { Format::Text } else { Format::Json };
        self.format.unwrap_or_else(by_reader) == Format::Json
    }
}

fn failed(error: StorageError) -> CliError {
    CliError::CouldNot(error.to_string())
}

/// A store that is there: nothing is made in its place.
fn open(settings: &ControlPlane) -> Result<Inspector, CliError> {
    if let StorageUrl::Folder(folder) = &settings.storage.url
        && !folder.is_dir()
    {
        return Err(CliError::CouldNot(format!("storage {}: there is no such folder", settings.storage.url)));
    }
    inspector(settings)
}

fn inspector(settings: &ControlPlane) -> Result<Inspector, CliError> {
    let signing = existing_signing_keys(&settings.audit).map_err(|error| CliError::CouldNot(error.to_string()))?;
    let store = Store::open_with(&settings.storage).map_err(failed)?;
    Inspector::new(settings, store, signing).map_err(failed)
}

pub(super) async fn run(command: StoreCommand) -> Result<(), CliError> {
    match command {
        StoreCommand::Status(args) => status(&args).await,
        StoreCommand::Check(args) => check(&args).await,
        StoreCommand::Repair(args) => Box::pin(repair(&args)).await,
        StoreCommand::Copy(args) => copy(&args).await,
    }
}

async fn status(args: &StoreArgs) -> Result<(), CliError> {
    let status = open(&args.settings()?)?.status().await.map_err(failed)?;
    if args.is_json() { output::line(&status.to_string()) } else { output::line(&status_text(&status)) }
}

fn status_text(status: &Value) -> String {
    let log = &status["log"];
    let mut lines = vec![
        format!("storage {}", text(&status["storage"])),
        format!(
            "log: {} objects, {} bytes, from {} (floor) to {}, oldest {}",
            log["objects"],
            log["bytes"],
            log["floor"],
            log["position"],
            text(&log["oldest_at"])
        ),
    ];
    for org in status["orgs"].as_array().into_iter().flatten() {
        lines.push(format!("org {}", text(&org["org"])));
        if let Some(error) = org["error"].as_str() {
            lines.push(format!("  {error}"));
            continue;
        }
        let (state, ledger) = (org.pointer("/state/position").unwrap_or(&Value::Null), &org["ledger"]);
        lines.push(format!("  state at {}, {} sections after it", text(state), org["sections"]));
        let checkpoint = text(&ledger["checkpoint"]);
        lines.push(format!("  ledger: {} entries, checkpoint over {checkpoint}", ledger["entries"]));
        for (name, table) in org["tables"].as_object().into_iter().flatten() {
            lines.push(format!(
                "  {name}: {} files ({} small), {} bytes, {} to {}; {} bytes to be merged, last merged {}, {} orphans",
                table["files"],
                table["small_files"],
                table["bytes"],
                text(&table["oldest"]),
                text(&table["newest"]),
                table["compaction_debt_bytes"],
                text(&table["last_compaction"]),
                text(&table["orphans"])
            ));
        }
        if org["parked"] != 0 {
            lines.push(format!("  parked: {} objects", org["parked"]));
        }
    }
    lines.join("\n")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

async fn check(args: &StoreArgs) -> Result<(), CliError> {
    let settings = args.settings()?;
    let inspector = open(&settings)?;
    let mut report =
        with_spinner("verifying", async |progress| inspector.check(progress).await).await.map_err(failed)?;
    wrapped_keys(&settings, &mut report).await?;
    if args.is_json() {
        output::line(&report_json(&report).to_string())?;
    } else {
        output::line(&report_text(&report))?;
    }
    verdict("the store", &report)
}

/// Unwraps each key of sealed payloads once: a KEK that was lost is better found here than by who needs a payload.
async fn wrapped_keys(settings: &ControlPlane, report: &mut Report) -> Result<(), CliError> {
    let main = Store::open_with(&settings.storage).map_err(failed)?;
    let keys = match keys::survey(&settings.payload_keys, (&settings.storage, &main)).await {
        Ok(keys) => keys,
        Err(error) => {
            report.unread.push(Finding::new("payload_keys", error));
            return Ok(());
        }
    };
    for (org, epoch, unwrapped) in keys {
        let object = format!("payload-keys/{org}/{epoch}");
        match unwrapped {
            Ok(()) => report.payload_keys += 1,
            // It was destroyed meanwhile.
            Err(KeyError::Absent(..)) => {}
            Err(error) if error.is_passing() => report.unread.push(Finding::new(object, error)),
            Err(error) => report.faults.push(Finding::new(object, error)),
        }
    }
    Ok(())
}

/// The exit code that a report asks for.
fn verdict(what: &str, report: &Report) -> Result<(), CliError> {
    let named = |finding: &Finding| format!("{}: {}", finding.object, finding.reason);
    match (report.faults.first(), report.unread.first()) {
        (Some(fault), _) => Err(CliError::No(format!("{what} is not sound: {}", named(fault)))),
        (None, Some(unread)) => Err(CliError::CouldNot(format!("{what} could not be checked: {}", named(unread)))),
        (None, None) => Ok(()),
    }
}

fn report_text(report: &Report) -> String {
    let of = |word: &str, findings: &[Finding]| -> Vec<String> {
        findings.iter().map(|found| format!("{word}{}: {}", found.object, found.reason)).collect()
    };
    let mut lines = of("", &report.faults);
    lines.extend(of("could not read ", &report.unread));
    let (floor, position) = report.log;
    lines.push(format!(
        "{}: {} log objects from {floor} (floor) to {position}, {} orgs, {} states, {} runs of keys, {} files of tables, \
         {} signed ledger entries, {} wrapped payload keys",
        if report.is_sound() { "sound" } else { "verified" },
        report.objects,
        report.orgs,
        report.states,
        report.runs,
        report.files,
        report.entries,
        report.payload_keys
    ));
    lines.join("\n")
}

fn report_json(report: &Report) -> Value {
    let of = |findings: &[Finding]| -> Vec<Value> {
        findings.iter().map(|found| json!({ "object": found.object, "reason": found.reason })).collect()
    };
    json!({
        "sound": report.is_sound(),
        "faults": of(&report.faults),
        "unread": of(&report.unread),
        "log": { "objects": report.objects, "floor": report.log.0, "position": report.log.1 },
        "orgs": report.orgs, "states": report.states, "key_runs": report.runs, "files": report.files, "entries": report.entries,
        "payload_keys": report.payload_keys,
    })
}

async fn repair(args: &RepairArgs) -> Result<(), CliError> {
    let inspector = open(&args.store.settings()?)?;
    let repair = Box::pin(inspector.repair(&args.org, args.dry_run, args.accept_loss)).await.map_err(failed)?;
    let Repair { passed_over, given_up, position, entries } = &repair;
    if args.store.is_json() {
        let of = |findings: &[Finding]| -> Vec<Value> {
            findings.iter().map(|found| json!({ "object": found.object, "reason": found.reason })).collect()
        };
        let told = json!({
            "org": args.org.as_str(), "passed_over": of(passed_over), "given_up": of(given_up), "position": position,
            "entries": entries,
        });
        output::line(&told.to_string())?;
    } else {
        let of = |word: &str, findings: &[Finding]| -> Vec<String> {
            findings.iter().map(|found| format!("{word} {}: {}", found.object, found.reason)).collect()
        };
        let mut lines = of("passed over", passed_over);
        lines.extend(of(if position.is_some() { "gave up" } else { "would give up" }, given_up));
        lines.push(match position {
            Some(position) => format!("org {} is repaired by log object {position}", args.org),
            None if repair.is_needless() => format!("org {}: nothing to repair", args.org),
            None => format!("org {}: nothing was done", args.org),
        });
        output::line(&lines.join("\n"))?;
    }
    if position.is_none() && !given_up.is_empty() {
        return Err(CliError::No("something would be lost: say --accept-loss to give it up".to_owned()));
    }
    Ok(())
}

async fn copy(args: &CopyArgs) -> Result<(), CliError> {
    let settings = args.store.settings()?;
    let from = open(&settings)?;
    if settings.storage.url == args.to || within(&settings.storage.url, &args.to)? {
        return Err(CliError::CouldNot(format!("{} is the store itself, or in it, or around it", args.to)));
    }
    let target = ControlPlane { storage: storage_at(settings.storage.clone(), args.to.clone()), ..settings };
    let to = inspector(&target)?;
    let copied = with_spinner("copying", async |progress| inspect::copy(&from, &to, progress).await).await;
    let Copied { objects, bytes, rounds, report } = copied.map_err(failed)?;
    if args.with_payload_keys {
        inspect::copy_payload_keys(&from, &to).await.map_err(failed)?;
    }
    if args.store.is_json() {
        let copied = json!({ "objects": objects, "bytes": bytes, "rounds": rounds, "check": report_json(&report) });
        output::line(&copied.to_string())?;
    } else {
        output::line(&format!("{}: {objects} objects, {bytes} bytes\n{}", args.to, report_text(&report)))?;
    }
    verdict("the copy", &report)
}

/// Whether one of two folders lies in the other.
fn within(one: &StorageUrl, other: &StorageUrl) -> Result<bool, CliError> {
    let (StorageUrl::Folder(one), StorageUrl::Folder(other)) = (one, other) else { return Ok(false) };
    // One that is not there yet is what it will be made as.
    let whole = |folder: &Path| {
        let whole = folder.canonicalize().or_else(|_| std::path::absolute(folder));
        whole.map_err(|error| CliError::could_not(folder.display(), error))
    };
    let (one, other) = (whole(one)?, whole(other)?);
    Ok(one.starts_with(&other) || other.starts_with(&one))
}

/// Works with a spinner that says where it is, on a terminal.
async fn with_spinner<T>(what: &'static str, work: impl AsyncFnOnce(&Progress<'_>) -> T) -> T {
    if !std::io::stderr().is_terminal() {
        return work(&|_| {}).await;
    }
    let spinner = ProgressBar::new_spinner();
    let outcome = work(&|at| {
        spinner.set_message(format!("{what} {at}"));
        spinner.tick();
    })
    .await;
    spinner.finish_and_clear();
    outcome
}
