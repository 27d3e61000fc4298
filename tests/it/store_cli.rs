//! `mcpg store`: status, check and copy, on the stores of control planes that run, were killed, or are under load.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    Account, Batch, Call, Cluster, EIO, ESTALE, Fleet, Folder, Rule, Server, Shim, Started, alone, assert_recovers,
    assert_sound, eventually, mcpg, org_names, run, vkeys,
};

/// Flushed at once, with runs of two idempotency keys each; nothing is merged while it is looked at.
const YAML: &str = "flush: { interval: 300ms }\nlimits: { idempotency_keys: 128 }\nmaintenance: { interval: 1h }";

/// A deployment of two orgs.
fn cluster() -> (Cluster, Vec<String>) {
    let orgs = org_names(2);
    (Cluster::new(&format!("{}\n{YAML}", Cluster::orgs(&orgs))), orgs)
}

/// Runs `mcpg store …` with the deployment's key on a store; its exit code, its answer, and what it says on standard
/// error.
async fn store_on(cluster: &Cluster, storage: &Path, words: &[&str]) -> (i32, Value, String) {
    answer(command(cluster, storage, words)).await
}

fn command(cluster: &Cluster, storage: &Path, words: &[&str]) -> Command {
    let (config, key) = (cluster.key_file().with_file_name("store.yaml"), cluster.key_file());
    let storage = format!("{{ url: \"file://{}\" }}", storage.display());
    std::fs::write(&config, format!("storage: {storage}\naudit: {{ key_file: {} }}\n", key.display())).unwrap();
    let mut command = mcpg();
    command.arg("store").args(words).arg("--config").arg(config);
    command
}

async fn answer(mut command: Command) -> (i32, Value, String) {
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), answer, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A check whose file-system calls go through a shim.
async fn store_through(shim: &Shim, cluster: &Cluster) -> (i32, Value, String) {
    let mut check = command(cluster, cluster.store().path(), &["check"]);
    check.envs(shim.environment());
    answer(check).await
}

pub(crate) async fn store(cluster: &Cluster, words: &[&str]) -> (i32, Value, String) {
    store_on(cluster, cluster.store().path(), words).await
}

/// Some batches of each kind to each org, with flushes, segments and checkpoints between them.
pub(crate) async fn live(server: &Server, orgs: &[String]) -> Account {
    let (client, mut account) = (server.client(), Account::default());
    for _ in 0..4 {
        assert_recovers(&client, orgs, &mut account).await;
        for org in orgs {
            assert!(Batch::samples(5).with_key().send_noted(&client, org, &mut account).await);
            assert!(Batch::events(5).with_key().send_noted(&client, org, &mut account).await);
        }
        tokio::time::sleep(Duration::from_millis(550)).await;
    }
    account
}

/// Files under a folder whose names end so: how many, and their bytes.
fn files(store: &Folder, folder: &str, suffix: &str) -> (u64, u64) {
    let names = store.list(folder).into_iter().filter(|name| name.ends_with(suffix) && !name.contains("_delta_log"));
    names.fold((0, 0), |(count, bytes), name| (count + 1, bytes + store.read(&name).len() as u64))
}

#[tokio::test(flavor = "multi_thread")]
async fn status_of_a_live_store_says_what_lies_on_it() {
    let (cluster, orgs) = cluster();
    let server = cluster.node().start().await;
    live(&server, &orgs).await;
    let on_disk = cluster.store();
    // The node is idle soon; then nothing moves while it is looked at.
    let (status, log) = eventually("the store to be at rest", Duration::from_secs(60), async || {
        let before = on_disk.list("");
        let (code, status, said) = store(&cluster, &["status"]).await;
        assert_eq!(code, 0, "{said}");
        let rests = status["orgs"]
            .as_array()
            .unwrap()
            .iter()
            .all(|org| org["sections"] == 0 && org["ledger"]["checkpoint"] == org["ledger"]["entries"]);
        (rests && before == on_disk.list("")).then(|| (status, on_disk.log()))
    })
    .await;
    let floor = on_disk.floor().unwrap();
    let above: Vec<u64> = log.into_iter().filter(|number| *number > floor).collect();
    let bytes: u64 = above.iter().map(|number| on_disk.read(&format!("wal/{number:020}")).len() as u64).sum();
    assert_eq!(status["log"]["floor"], floor);
    assert_eq!(status["log"]["objects"], above.len());
    assert_eq!(status["log"]["bytes"], bytes);
    assert_eq!(status["log"]["position"], *above.last().unwrap());
    assert!(status["log"]["oldest_at"].as_str().unwrap().ends_with('Z'), "{status}");
    assert_eq!(status["orgs"].as_array().unwrap().len(), orgs.len());
    for (org, said) in orgs.iter().zip(status["orgs"].as_array().unwrap()) {
        assert_eq!(said["org"], org.as_str());
        let newest: u64 =
            on_disk.newest(&format!("orgs/{org}/state/"), "").rsplit('/').next().unwrap().parse().unwrap();
        assert_eq!(said["state"]["position"], newest, "{said}");
        for table in ["tool_invocations", "tool_usage_hourly", "tool_usage_daily"] {
            let (count, bytes) = files(&on_disk, &format!("orgs/{org}/{table}/"), ".parquet");
            let table = &said["tables"][table];
            assert!(count > 0 && table["files"] == count && table["bytes"] == bytes, "{count}, {bytes}: {table}");
            assert!(table["small_files"] == count && table["oldest"].as_str() <= table["newest"].as_str(), "{table}");
        }
        let entries = server.client().with_org(org).number("SELECT count(*) FROM audit_log").await;
        assert_eq!(said["ledger"]["entries"], entries, "{said}");
        assert_eq!(said["parked"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_live_store_sound() {
    let (cluster, orgs) = cluster();
    let server = cluster.node().start().await;
    let fleet = Fleet::on(&[server.client()], &orgs).start();
    for _ in 0..3 {
        fleet.further(20).await;
        let (code, report, said) = store(&cluster, &["check"]).await;
        assert_eq!(code, 0, "{said}: {report}");
        assert_eq!(report["sound"], true);
        assert_eq!(report["orgs"], orgs.len());
    }
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_object_that_a_byte_was_flipped_in() {
    let (cluster, orgs) = cluster();
    let mut server = cluster.node().start().await;
    live(&server, &orgs).await;
    server.kill();
    let before = cluster.store().digest();
    let (code, report, said) = store(&cluster, &["check"]).await;
    assert_eq!(code, 0, "{said}: {report}");
    for counted in ["states", "key_runs", "files", "entries"] {
        assert!(report[counted].as_u64().unwrap() > 0, "{counted}: {report}");
    }
    assert_eq!(cluster.store().digest(), before, "a check writes nothing");

    let on_disk = cluster.store();
    let (log, org) = (on_disk.log(), &orgs[1]);
    let (older, newest) = (log[log.len() / 2], *log.last().unwrap());
    let folder = format!("orgs/{org}");
    let objects = [
        (format!("wal/{older:020}"), 120),
        (format!("wal/{newest:020}"), -1),
        ("wal/layout".to_owned(), 3),
        (on_disk.newest("wal/floor/", ""), 3),
        (on_disk.newest(&format!("{folder}/state/"), ""), 60),
        (on_disk.newest(&format!("{folder}/tool_invocations/_delta_log/"), ".json"), 0),
        (on_disk.newest(&format!("{folder}/tool_usage_daily/_delta_log/"), ".json"), 3),
    ];
    for (object, place) in objects {
        assert!(is_found(&cluster, &object, Some(place)).await, "a flipped bit of {object} is not found");
    }
    // Some bytes of a Parquet file say nothing.
    let segment = on_disk.list(&format!("{folder}/audit/segments/"))[0].clone();
    assert!(any_is_found(&cluster, (1..40).map(|part| (segment.clone(), Some(part * 100)))).await, "{segment}");
    // Runs of keys that were merged into others are named by no state any more.
    let runs = on_disk.list(&format!("{folder}/keys/")).into_iter().rev();
    assert!(any_is_found(&cluster, runs.map(|run| (run, Some(55)))).await, "no run of keys is verified");
}

/// Whether a check finds that a bit was flipped in an object, or that it is gone, and names this object alone.
async fn is_found(cluster: &Cluster, object: &str, place: Option<isize>) -> bool {
    let copy = cluster.copy();
    match place {
        Some(place) => copy.store().flip(object, place, 2),
        None => copy.store().remove(object),
    }
    let (code, report, said) = store(&copy, &["check"]).await;
    let faults = report["faults"].as_array().unwrap_or_else(|| panic!("{object}: {code}: {said}"));
    let named = |fault: &Value| fault["object"].as_str().unwrap().starts_with(object);
    assert!(code == i32::from(!faults.is_empty()) && faults.iter().all(named), "{object}: {code}: {report}");
    code == 1 && said.contains("not sound")
}

async fn any_is_found(cluster: &Cluster, changes: impl Iterator<Item = (String, Option<isize>)>) -> bool {
    for (object, place) in changes {
        if is_found(cluster, &object, place).await {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_gone_or_of_another_time() {
    let (cluster, orgs) = cluster();
    let mut server = cluster.node().start().await;
    live(&server, &orgs).await;
    let (on_disk, folder) = (cluster.store(), format!("orgs/{}", orgs[0]));
    // A log that ends twelve objects earlier is to be older than what is stored.
    eventually("what came last to be flushed", Duration::from_secs(60), async || {
        let states = on_disk.list(&format!("{folder}/state/"));
        let newest: u64 = states.last()?.rsplit('/').next()?.parse().ok()?;
        (newest + 12 > *on_disk.log().last()?).then_some(())
    })
    .await;
    server.kill();
    let log = on_disk.log();
    let last = *log.last().unwrap();
    let data = on_disk.newest(&format!("{folder}/tool_invocations/date="), ".parquet");
    for object in [format!("wal/{:020}", log[log.len() - 2]), data, "wal/layout".to_owned()] {
        assert!(is_found(&cluster, &object, None).await, "that {object} is gone is not found");
    }
    let runs = on_disk.list(&format!("{folder}/keys/")).into_iter().rev();
    assert!(any_is_found(&cluster, runs.map(|run| (run, None))).await, "no run of keys is missed");
    // The log older than what is stored of the orgs.
    let copy = cluster.copy();
    for number in log.iter().filter(|number| **number + 12 > last) {
        copy.store().remove(&format!("wal/{number:020}"));
    }
    assert_names(&copy, "orgs/", "the end of the log").await;
    // No checkpoint, and a log that no longer has the first entries.
    if on_disk.floor().unwrap() > 0 {
        let copy = cluster.copy();
        for object in copy.store().list(&format!("{folder}/audit/checkpoint")) {
            copy.store().remove(&object);
        }
        assert_names(&copy, &format!("{folder}/audit/checkpoint"), "the checkpoints").await;
    }
}

async fn assert_names(cluster: &Cluster, named: &str, gone: &str) {
    let (code, report, said) = store(cluster, &["check"]).await;
    assert_eq!(code, 1, "without {gone}: {said}: {report}");
    let faults = report["faults"].as_array().unwrap();
    assert!(faults.iter().any(|fault| fault["object"].as_str().unwrap().starts_with(named)), "{gone}: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_checked_is_said_apart_and_makes_nothing() {
    let (cluster, _) = cluster();
    let mut server = cluster.node().start().await;
    server.kill();
    let folder = TempDir::with_prefix("mcpg-store-cli-").unwrap();
    let (absent, empty) = (folder.path().join("absent"), folder.path().join("empty"));
    std::fs::create_dir(&empty).unwrap();
    for place in [&absent, &empty] {
        for command in ["status", "check"] {
            let (code, _, said) = store_on(&cluster, place, &[command]).await;
            assert_eq!(code, 2, "{command}: {said}");
        }
    }
    assert!(!absent.exists());
    assert_eq!(Folder::at(&empty).list(""), Vec::<String>::new());
    // Another deployment's key, and none.
    let (other, _) = self::cluster();
    let (code, _, said) = store_on(&other, cluster.store().path(), &["check"]).await;
    assert!(code == 2 && said.contains("ledger.key is not there"), "{code}: {said}");
    other.node().start().await.kill();
    let (code, _, said) = store_on(&other, cluster.store().path(), &["check"]).await;
    assert!(code == 2 && said.contains("key"), "{code}: {said}");
}

/// What a disk fails to deliver says nothing of what is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_is_no_fault() {
    let (cluster, orgs) = cluster();
    let mut server = cluster.node().start().await;
    live(&server, &orgs).await;
    server.kill();
    let shim = Shim::new();
    for place in ["/wal/0", "/state/", "/keys/", "/_delta_log", "/tool_invocations/date", "/audit/"] {
        for errno in [EIO, ESTALE] {
            let before = shim.injected(place);
            shim.rules(&[Rule::fails(Call::Read, place, errno).once()]);
            let (code, report, said) = store_through(&shim, &cluster).await;
            assert_eq!(code, 0, "{place}, once: {said}: {report}");
            assert!(shim.injected(place) > before, "nothing was read of {place}");
        }
        shim.rules(&[Rule::fails(Call::Read, place, EIO)]);
        let (code, report, said) = store_through(&shim, &cluster).await;
        assert_eq!(code, 2, "{place}: {said}: {report}");
        assert!(report["faults"].as_array().is_none_or(Vec::is_empty), "{place}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_store_under_load_is_a_control_plane_of_its_own() {
    let _alone = alone().await;
    let (cluster, orgs) = cluster();
    let mut server = cluster.node().start().await;
    let fleet = Fleet::on(&[server.client()], &orgs).start();
    fleet.further(60).await;
    let keys = vkeys(&server.client(), &orgs).await;

    let (target, acknowledged) = (Cluster::new(&format!("{}\n{YAML}", Cluster::orgs(&orgs))), fleet.account());
    let to = target.store().path().display().to_string();
    let (code, copied, said) = store(&cluster, &["copy", "--to", &to]).await;
    assert_eq!(code, 0, "{said}: {copied}");
    assert_eq!(copied["check"]["sound"], true, "{copied}");
    fleet.further(20).await;
    let sent = fleet.finish().await;
    server.kill();

    acknowledged.assert_ledgers(target.store().path(), &keys).await;
    std::fs::copy(cluster.key_file(), target.key_file()).unwrap();
    let mut copy = target.node().start().await;
    // What was acknowledged before is there; what came later may be.
    sent.as_known_by(&acknowledged).assert_kept(&copy.client()).await;
    let mut later = Account::default();
    assert_recovers(&copy.client(), &orgs, &mut later).await;
    assert!(copy.stop().await.success());
    for org in &orgs {
        assert_sound(target.store().path(), org, &keys[org]).await;
    }
    let (code, report, said) = store(&target, &["check"]).await;
    assert_eq!(code, 0, "{said}: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_to_an_empty_place_and_one_that_is_not_sound_is_no_store() {
    let (cluster, orgs) = cluster();
    let mut server = cluster.node().start().await;
    live(&server, &orgs).await;
    server.kill();
    let other = Cluster::new("");
    other.store().write("note.txt", b"mine");
    let within = cluster.store().file("backup").display().to_string();
    for to in [other.store().path().display().to_string(), cluster.store().path().display().to_string(), within] {
        let (code, _, said) = store(&cluster, &["copy", "--to", &to]).await;
        assert_eq!(code, 2, "{to}: {said}");
    }
    assert_eq!(other.store().list(""), ["note.txt"]);

    // A fault of the store is the copy's too: it is named, and a control plane does not start on it.
    let spoiled = cluster.copy();
    let state = spoiled.store().newest(&format!("orgs/{}/state/", orgs[0]), "");
    spoiled.store().flip(&state, 60, 2);
    let target = Cluster::new(&Cluster::orgs(&orgs));
    std::fs::copy(spoiled.key_file(), target.key_file()).unwrap();
    let to = target.store().path().display().to_string();
    let (code, copied, said) = store(&spoiled, &["copy", "--to", &to]).await;
    assert!(code == 1 && said.contains(&state), "{code}: {said}: {copied}");
    let mut server = target.node().server();
    let started = server.try_start(Duration::from_secs(60)).await;
    assert_ne!(started, Started::Ready);
    assert!(server.logs().contains("wal/layout"), "{}", server.logs());
}
