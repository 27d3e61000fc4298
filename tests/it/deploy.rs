//! `deploy/kubernetes` and `deploy/systemd`: the manifests are Kubernetes', the units systemd's, and the configurations
//! in them are sound and start.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Program, free_port, mcpg, plain_http, run, tool, yaml};

const MANIFESTS: [&str; 2] = ["control-plane.yaml", "gateway.yaml"];
const UNITS: [&str; 2] = ["mcpg-control-plane.service", "mcpg-gateway.service"];

/// The variables that hold hashes of tokens.
const HASHES: [&str; 3] = ["HASH_GATEWAYS", "HASH_PROMETHEUS", "HASH_OPERATOR"];

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

fn text(file: &str) -> String {
    std::fs::read_to_string(deploy(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The documents of a manifest, by their kind.
fn document(manifest: &str, kind: &str) -> Value {
    let file = format!("kubernetes/{manifest}");
    yaml(&file, &text(&file)).into_iter().find(|document| document["kind"] == kind).unwrap()
}

/// A configuration of a manifest, by its file's name.
fn configuration(manifest: &str, name: &str) -> String {
    document(manifest, "ConfigMap")["data"][name].as_str().unwrap().to_owned()
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = run(command);
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn the_manifests_are_kubernetes_own() {
    let validate = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/kubernetes-validate");
    assert!(validate.exists(), "kubernetes-validate is not installed: run `make test` or tests/setup.sh");
    for manifest in MANIFESTS {
        succeeds(Command::new(&validate).arg("--strict").arg(deploy("kubernetes").join(manifest)));
    }
}

#[test]
fn what_a_configuration_takes_from_the_environment_is_given_to_its_container() {
    let variable = Regex::new(r"\$\{([A-Z_]+)").unwrap();
    for manifest in MANIFESTS {
        let config = configuration(manifest, manifest);
        let taken: BTreeSet<String> = variable.captures_iter(&config).map(|found| found[1].to_owned()).collect();
        let container = document(manifest, "StatefulSet")["spec"]["template"]["spec"]["containers"][0].clone();
        let given =
            container["env"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(taken, given, "{manifest}");
        let port = container["ports"][0]["containerPort"].as_u64().unwrap();
        assert!(config.contains(&format!("listen: 0.0.0.0:{port}\n")), "{manifest}: port {port}");
        assert_eq!(document(manifest, "Service")["spec"]["ports"][0]["port"], port, "{manifest}");
    }
}

/// The configuration of a control plane, with what is of the cluster replaced by what is of this machine, and the key
/// that it takes.
fn control_plane(folder: &Path, port: u16) -> (PathBuf, String) {
    succeeds(
        Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out", "ledger.key"]).current_dir(folder),
    );
    let config = configuration("control-plane.yaml", "control-plane.yaml");
    let config = config.replace("0.0.0.0:7843", &format!("127.0.0.1:{port}"));
    let config = config.replace("file:///var/lib/mcpg", &format!("file://{}", folder.join("store").display()));
    let file = folder.join("control-plane.yaml");
    std::fs::write(&file, config).unwrap();
    (file, std::fs::read_to_string(folder.join("ledger.key")).unwrap())
}

fn with_hashes<'a>(command: &'a mut Command, key: &str) -> &'a mut Command {
    // Of no known token, each another one.
    let hashes = HASHES.iter().enumerate().map(|(number, name)| (name, format!("{:064x}", number + 1)));
    command.env("LEDGER_KEY", key).envs(hashes)
}

#[tokio::test]
async fn the_control_plane_of_the_manifest_starts_and_drains() {
    let (folder, port) = (TempDir::new().unwrap(), free_port());
    let (file, key) = control_plane(folder.path(), port);
    succeeds(with_hashes(mcpg().args(["config", "check"]).arg(&file), &key));
    let mut program = Program::new("the control plane of the manifest");
    program.spawn(with_hashes(mcpg().args(["control-plane", "--config"]).arg(&file).current_dir(folder.path()), &key));
    let client = plain_http().build().unwrap();
    let ready = format!("http://127.0.0.1:{port}/readyz");
    let is_ready = async || client.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success());
    program.ready(std::time::Duration::from_secs(90), is_ready).await;
    program.terminate();
    assert!(program.ended().await.success(), "{}", program.logs());
}

#[test]
fn the_gateways_configuration_is_sound_with_its_policies() {
    let folder = TempDir::new().unwrap();
    let config = configuration("gateway.yaml", "gateway.yaml");
    let config = config.replace("/etc/mcpg/*.cedar", &format!("{}/*.cedar", folder.path().display()));
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, config).unwrap();
    std::fs::write(folder.path().join("all.cedar"), configuration("gateway.yaml", "all.cedar")).unwrap();
    succeeds(mcpg().args(["config", "check"]).arg(&file).env("INSTANCE", "mcpg-gateway-0").env("MCPG_TOKEN", "t"));
}

#[test]
fn the_units_are_systemds_own() {
    let folder = TempDir::new().unwrap();
    for unit in UNITS {
        let text = text(&format!("systemd/{unit}"));
        assert!(text.contains("ExecStart=/usr/local/bin/mcpg "), "{unit}");
        // The program need not be installed here; everything else is as it stands.
        let file = folder.path().join(unit);
        std::fs::write(&file, text.replace("/usr/local/bin/mcpg", "/bin/true")).unwrap();
        let output = run(Command::new(tool("systemd-analyze")).arg("verify").arg(&file));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // It also reports units of the machine's own.
        let ours: Vec<_> = said.lines().filter(|line| line.contains(unit)).collect();
        assert!(output.status.success() && ours.is_empty(), "{unit}: {said}");
    }
}
