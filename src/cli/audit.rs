//! `mcpg audit`: verifies a ledger, exports it, proves one entry, prints its key. How long it is kept is in
//! `audit_keeping`, proofs are in `audit_proof`.
//!
//! `verify`, `export` and `proof` read a store or a bundle directly, without a server and without any key but the
//! public one. The verdict goes to standard output; with exit code 1, standard error names the first thing that is
//! wrong as well.

use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use url::Url;

use super::audit_keeping::{self, HoldArgs, PruneArgs};
use super::audit_proof::{self, ProofArgs};
use super::config::load;
use super::{CliError, http, output};
use crate::audit::note::VKey;
use crate::audit::verify::{
    self, Bundle, BundleError, Expected, Fault, Folder, Gap, Objects, Progress, Remembered, Remote, Sound, Source,
    SourceError, VerifyError,
};
use crate::audit::{AuditError, SigningKeys, checkpoint, keys};
use crate::config::{ControlPlane, Secret};
use crate::model::OrgName;
use crate::storage::Store;

/// Entries between two looks of the progress bar.
const BAR_STEP: u64 = 10_000;

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Verify a ledger without trusting the server or its store: exit code 0 sound, 1 not sound, 2 could not check.
    Verify(VerifyArgs),
    /// Make the proof that one entry is in a ledger, or check one: exit code 0 proved, 1 not proved, 2 could not check.
    Proof(ProofArgs),
    /// Write a ledger into one file, that `verify --bundle` checks anywhere.
    Export(ExportArgs),
    /// Print the verifier key of an org's ledger.
    Vkey(VkeyArgs),
    /// Remove entries that are older than they are kept, or say which would go.
    Prune(PruneArgs),
    /// Put a ledger on hold: nothing of it is removed until it is released.
    Hold(HoldArgs),
    /// End the hold of a ledger.
    Release(HoldArgs),
}

#[derive(Debug, Args)]
#[group(required = false, multiple = false, id = "place")]
pub(super) struct Place {
    /// The object store that the ledger lies in: a folder, file:///folder, or s3://bucket/prefix with all else from the
    /// environment.
    #[arg(long, value_name = "URL", group = "place")]
    store: Option<String>,
    /// The control plane that hands out the ledger.
    #[arg(long, value_name = "URL", group = "place")]
    url: Option<Url>,
    /// A bundle that `mcpg audit export` made, or a folder that it was unpacked to.
    #[arg(long, value_name = "FILE", group = "place")]
    bundle: Option<PathBuf>,
}

impl Place {
    /// The ledger there; none, and why, when it is in a bundle that is damaged.
    pub(super) fn open(
        &self,
        org: &OrgName,
        token: Option<Secret>,
        runtime: Handle,
    ) -> Result<Result<Box<dyn Source>, Fault>, CliError> {
        match (&self.store, &self.url, &self.bundle) {
            (Some(store), ..) => Ok(Ok(from_store(store, org, runtime)?)),
            (_, Some(url), _) => Ok(Ok(from_url(url, org, token, runtime)?)),
            (.., Some(bundle)) => from_bundle(bundle, org),
            _ => Err(CliError::CouldNot("say where the ledger is: --store, --url or --bundle".to_owned())),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    place: Place,
    /// The org whose ledger it is.
    #[arg(long, env = "MCPG_ORG")]
    org: OrgName,
    /// The verifier key, had from elsewhere than the ledger; more than once: any of them.
    #[arg(long = "vkey", value_name = "KEY", required = true, value_parser = vkey)]
    vkeys: Vec<VKey>,
    /// Demand the cosignature of this witness on the newest checkpoint; more than once: of all of them.
    #[arg(long = "witness-vkey", value_name = "KEY", value_parser = vkey)]
    witnesses: Vec<VKey>,
    /// A checkpoint that you kept: the ledger must have grown from it; more than once: from all of them.
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// The API token, with the role `read`.
    #[arg(long, env = "MCPG_TOKEN", hide_env_values = true, value_parser = http::secret)]
    token: Option<Secret>,
    /// Print the verdict as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The object store that the ledger lies in: a folder, file:///folder, or s3://bucket/prefix with all else from the
    /// environment.
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    store: Option<String>,
    /// The control plane that hands out the ledger.
    #[arg(long, env = "MCPG_URL", value_name = "URL", default_value = "http://127.0.0.1:7843")]
    url: Url,
    /// The org whose ledger it is.
    #[arg(long, env = "MCPG_ORG")]
    org: OrgName,
    /// The file to write; it is there when it is whole.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The API token, with the role `read`.
    #[arg(long, env = "MCPG_TOKEN", hide_env_values = true, value_parser = http::secret)]
    token: Option<Secret>,
}

#[derive(Debug, Args)]
pub(super) struct VkeyArgs {
    /// The control plane that is asked.
    #[arg(long, env = "MCPG_URL", value_name = "URL", default_value = "http://127.0.0.1:7843")]
    url: Url,
    /// The control plane's configuration: take the key that it names, and ask no server.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// The org whose ledger it is.
    #[arg(long, env = "MCPG_ORG")]
    org: OrgName,
    /// The API token, with the role `read`.
    #[arg(long, env = "MCPG_TOKEN", hide_env_values = true, value_parser = http::secret)]
    token: Option<Secret>,
}

pub(super) fn vkey(text: &str) -> Result<VKey, String> {
    text.parse::<VKey>().map_err(|error| error.to_string())
}

pub(super) async fn run(command: AuditCommand) -> Result<(), CliError> {
    match command {
        AuditCommand::Verify(args) => blocking(move |runtime| verify(&args, runtime)).await,
        AuditCommand::Proof(args) => blocking(move |runtime| audit_proof::run(&args, runtime)).await,
        AuditCommand::Export(args) => blocking(move |runtime| export(&args, runtime)).await,
        AuditCommand::Vkey(args) => tell_vkey(args).await,
        AuditCommand::Prune(args) => audit_keeping::prune(args).await,
        AuditCommand::Hold(args) => audit_keeping::hold(args).await,
        AuditCommand::Release(args) => audit_keeping::release(args).await,
    }
}

/// Runs what reads and computes on a thread of its own.
async fn blocking(work: impl FnOnce(Handle) -> Result<(), CliError> + Send + 'static) -> Result<(), CliError> {
    let runtime = Handle::current();
    let outcome = tokio::task::spawn_blocking(move || work(runtime)).await;
    outcome.unwrap_or_else(|error| Err(CliError::could_not("the work was broken off", error)))
}

fn ledger_of(org: &OrgName) -> String {
    format!("orgs/{org}/audit")
}

pub(super) fn could_not(error: SourceError) -> CliError {
    CliError::CouldNot(format!("could not check: {error}"))
}

/// The ledger in a store. A folder of this machine is read as it is; nothing is made in it.
fn from_store(url: &str, org: &OrgName, runtime: Handle) -> Result<Box<dyn Source>, CliError> {
    let folder = match Url::parse(url) {
        Ok(parsed) if parsed.scheme() == "file" => {
            let path = parsed.to_file_path();
            Some(path.map_err(|()| CliError::CouldNot(format!("{url} is no absolute file:/// URL")))?)
        }
        Ok(_) => None,
        Err(_) => Some(PathBuf::from(url)),
    };
    match folder {
        Some(folder) => Ok(Box::new(Folder::open(&folder.join(ledger_of(org))).map_err(could_not)?)),
        None => {
            let store = Store::open(url).map_err(|error| CliError::CouldNot(error.to_string()))?;
            Ok(Box::new(Objects::new(store.objects().clone(), ledger_of(org), runtime)))
        }
    }
}

fn from_url(url: &Url, org: &OrgName, token: Option<Secret>, runtime: Handle) -> Result<Box<dyn Source>, CliError> {
    let root = http::path(url, &["v1", "orgs", org.as_str(), "audit"])?;
    Ok(Box::new(Remote::new(http::client(url)?, root, token, runtime)))
}

/// The ledger in a bundle; none, and why, when that is damaged.
fn from_bundle(path: &Path, org: &OrgName) -> Result<Result<Box<dyn Source>, Fault>, CliError> {
    if path.is_dir() {
        return Ok(Ok(Box::new(Folder::open(path).map_err(could_not)?)));
    }
    match Bundle::open(path, &format!("{}/", ledger_of(org))) {
        Ok(bundle) => Ok(Ok(Box::new(bundle))),
        Err(BundleError::Unreadable(error)) => Err(could_not(error)),
        Err(BundleError::Damaged(why)) => {
            Ok(Err(Fault { kind: verify::Kind::Unreadable, seq: None, file: path.display().to_string(), why }))
        }
    }
}

fn verify(args: &VerifyArgs, runtime: Handle) -> Result<(), CliError> {
    let source = args.place.open(&args.org, args.token.clone(), runtime)?;
    let expected = Expected {
        org: args.org.clone(),
        vkeys: args.vkeys.clone(),
        witnesses: args.witnesses.clone(),
        checkpoints: args.checkpoints.iter().map(|file| remembered(file)).collect::<Result<_, _>>()?,
    };
    let outcome = match source {
        Ok(source) => with_bar("verifying", |progress| verify::verify(&*source, &expected, workers(), progress)),
        Err(fault) => Err(VerifyError::NotSound(fault)),
    };
    match outcome {
        Ok(sound) if args.json => output::line(&sound_json(&sound).to_string()),
        Ok(sound) => output::line(&sound_text(&sound)),
        Err(VerifyError::NotSound(fault)) => {
            let Fault { kind, seq, file, why } = &fault;
            output::line(&if args.json {
                json!({ "sound": false, "kind": kind.name(), "seq": seq, "file": file, "why": why }).to_string()
            } else {
                format!("not sound: {fault}")
            })?;
            Err(CliError::No(format!("the ledger of org {} is not sound: {fault}", args.org)))
        }
        Err(VerifyError::CouldNot(error)) => Err(could_not(error)),
    }
}

/// A checkpoint that the auditor kept. A file that is too long to be one is read as far as is needed to find that out.
fn remembered(file: &Path) -> Result<Remembered, CliError> {
    let mut note = Vec::new();
    let read = File::open(file).and_then(|opened| opened.take(1 << 16).read_to_end(&mut note));
    read.map_err(|error| CliError::could_not(file.display(), error))?;
    Ok(Remembered { file: file.display().to_string(), note })
}

/// A thread less than there are, for the one that reads; none beside it where there is but one.
fn workers() -> Option<NonZeroUsize> {
    std::thread::available_parallelism().ok().and_then(|cores| NonZeroUsize::new(cores.get().min(8) - 1))
}

fn sound_text(sound: &Sound) -> String {
    let mut lines = vec![
        format!("sound: {}", sound.origin),
        format!("entries under the signed checkpoint: {}, root {}", sound.size, sound.root),
        format!("kept checkpoints, each consistent with it: {}", sound.heads),
    ];
    if let Some(micros) = sound.recorded_at {
        lines.push(format!("the last entry under it was recorded at {}", time_text(micros.div_euclid(1_000_000))));
    }
    if sound.remembered > 0 {
        lines.push(format!("checkpoints of yours, each consistent with it: {}", sound.remembered));
    }
    if let Some(gap) = sound.spacing.widest {
        lines.push(format!("the widest gap between kept checkpoints: {}", gap_text(gap)));
    }
    if let Some(gap) = sound.spacing.sparse {
        lines.push(format!(
            "fewer kept checkpoints than one a day, as the control plane keeps them: {}; some may have been deleted",
            gap_text(gap)
        ));
    }
    lines.extend(sound.remarks.iter().cloned());
    if sound.first_kept > 0 {
        lines.push(format!("entries 0 to {} were removed, as an entry ledger.prune says", sound.first_kept - 1));
    }
    if sound.unsigned > 0 {
        lines.push(format!(
            "entries not yet signed, chained all the same: {}; whoever can write the store could have added them",
            sound.unsigned
        ));
    }
    for time in &sound.cosigned {
        lines.push(format!("cosigned by the witness at {}", time_text(i64::try_from(*time).unwrap_or(i64::MAX))));
    }
    for holes in &sound.holes {
        let name = if holes.instance.is_empty() { "no instance" } else { &holes.instance };
        let (from, to) = holes.first;
        lines.push(format!(
            "never reached the ledger: {} events that {name} counted, the first of them {from} to {to}",
            holes.missing
        ));
    }
    if sound.more_holes {
        lines.push("more such holes, too many to name".to_owned());
    }
    lines.extend(unknown(sound).iter().map(|(_, words)| format!("not known: {words}")));
    lines.join("\n")
}

/// What no ledger can show by itself: a word for programs, and words for people.
fn unknown(sound: &Sound) -> Vec<(&'static str, &'static str)> {
    let rollback = match (sound.remembered, sound.cosigned.is_empty()) {
        (0, true) => {
            "whether an older state of the ledger was put in its place: give --checkpoint with one that you kept, or --witness-vkey"
        }
        (0, false) => {
            "whether there was a newer state than the one that the witness cosigned then: ask the witness for the size it saw last"
        }
        _ => "whether there was a newer state than this one, after the checkpoints that you kept",
    };
    let mut unknown = vec![("rollback", rollback)];
    if sound.unsigned > 0 {
        unknown.push(("unsigned", "whether the entries that are not signed yet will be signed as they are"));
    }
    unknown.push(("omission", "what never reached the ledger, but for holes in the emitters' counters"));
    unknown.push(("truth", "whether what was recorded is true"));
    unknown
}

fn gap_text(gap: Gap) -> String {
    let time = gap.seconds.map(|seconds| format!(", {} h {} min", seconds / 3_600, seconds / 60 % 60));
    format!("{} entries, from {} to {}{}", gap.to - gap.from, gap.from, gap.to, time.unwrap_or_default())
}

fn time_text(seconds: i64) -> String {
    let time = DateTime::from_timestamp(seconds, 0);
    time.map_or_else(|| format!("second {seconds}"), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

fn sound_json(sound: &Sound) -> Value {
    let hole = |holes: &verify::Holes| json!({ "instance": holes.instance, "missing": holes.missing, "first": [holes.first.0, holes.first.1] });
    let gap = |gap: Gap| json!({ "from": gap.from, "to": gap.to, "seconds": gap.seconds });
    json!({
        "sound": true, "origin": sound.origin, "size": sound.size, "root": sound.root.to_string(), "first_kept": sound.first_kept,
        "not_signed": sound.unsigned, "heads": sound.heads, "cosigned": sound.cosigned, "remembered": sound.remembered,
        "recorded_at": sound.recorded_at.and_then(DateTime::from_timestamp_micros).map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true)),
        "widest_gap": sound.spacing.widest.map(gap), "sparse": sound.spacing.sparse.map(gap), "remarks": sound.remarks,
        "not_known": unknown(sound).iter().map(|(word, _)| *word).collect::<Vec<_>>(),
        "holes": sound.holes.iter().map(hole).collect::<Vec<_>>(), "more_holes": sound.more_holes,
    })
}

/// Works behind a progress bar, on a terminal.
fn with_bar<T>(what: &'static str, work: impl FnOnce(&Progress<'_>) -> T) -> T {
    if !std::io::stderr().is_terminal() {
        return work(&|_, _| {});
    }
    let template = format!("{what} {{wide_bar}} {{pos}}/{{len}} entries {{eta}}");
    // The template is a constant; were it wrong, the default style would do.
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::no_length().with_style(style);
    let outcome = work(&|done, total| {
        if done.abs_diff(bar.position()) >= BAR_STEP || done == total {
            bar.set_length(total);
            bar.set_position(done);
        }
    });
    bar.finish_and_clear();
    outcome
}

fn export(args: &ExportArgs, runtime: Handle) -> Result<(), CliError> {
    let source = match &args.store {
        Some(store) => from_store(store, &args.org, runtime)?,
        None => from_url(&args.url, &args.org, args.token.clone(), runtime)?,
    };
    let failed = |error: std::io::Error| CliError::could_not(args.out.display(), error);
    let mut beside = args.out.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let file = File::create(&beside).map_err(failed)?;
    let written = with_bar("exporting", |progress| verify::export(&*source, BufWriter::new(&file), progress));
    let placed = written.map_err(|error| CliError::CouldNot(error.to_string())).and_then(|exported| {
        file.sync_all().and_then(|()| fs::rename(&beside, &args.out)).map_err(failed)?;
        Ok(exported)
    });
    match placed {
        Ok(exported) => output::line(&format!(
            "{}: {} entries of {} in {} files; check it with `mcpg audit verify --bundle`",
            args.out.display(),
            exported.size,
            exported.origin,
            exported.files
        )),
        Err(error) => {
            // What is left of it is of no use; that it cannot be removed is the lesser trouble.
            let _ = fs::remove_file(&beside);
            Err(error)
        }
    }
}

async fn tell_vkey(args: VkeyArgs) -> Result<(), CliError> {
    if let Some(file) = &args.config {
        let settings: ControlPlane = load(file)?;
        let vkey = vkey_of(&settings, &args.org).map_err(|error| CliError::CouldNot(error.to_string()))?;
        return output::line(&vkey.to_string());
    }
    let url = http::path(&args.url, &["v1", "orgs", args.org.as_str(), "audit", "vkey"])?;
    let mut request = http::client(&args.url)?.get(url);
    if let Some(token) = &args.token {
        request = request.bearer_auth(token.expose());
    }
    let response = request.send().await.map_err(|error| http::not_reached(&args.url, &error))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| http::not_reached(&args.url, &error))?;
    if !status.is_success() {
        return Err(CliError::CouldNot(format!("{status}: {}", text.trim())));
    }
    output::line(text.trim())
}

/// The verifier key of the key that is configured. None is made here: that is for the control plane to do.
fn vkey_of(settings: &ControlPlane, org: &OrgName) -> Result<VKey, AuditError> {
    let key = match &settings.audit.key {
        Some(pem) => keys::parse(pem.expose())?,
        None => {
            let path = &settings.audit.key_file;
            let missing = || {
                AuditError::Key(format!(
                    "{} is not there; the control plane makes it at its first start",
                    path.display()
                ))
            };
            keys::load(path)?.ok_or_else(missing)?
        }
    };
    SigningKeys::new(key).vkey(&checkpoint::origin(&settings.name, org))
}
