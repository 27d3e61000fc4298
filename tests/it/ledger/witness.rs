//! Heads elsewhere: a witness that is not ours cosigns them, a mirror has copies of them, and neither lets a ledger be
//! rolled back.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::chain::{SOON, emit, entries, folder, sealed, size, verify, vkey};
use crate::harness::{Client, Config, Program, Server, eventually, free_port, mcpg, run};

/// `aics-witness`, a public implementation of C2SP tlog-witness.
struct Witness {
    folder: TempDir,
    port: u16,
    program: Program,
    vkey: String,
}

impl Witness {
    /// One that trusts this ledger's key.
    async fn new(ledger: &str) -> Self {
        let folder = TempDir::with_prefix("mcpg-witness-").unwrap();
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let vkey = Self::ask(folder.path(), &["init", "--name", "witness.test/w1", "--listen", &listen]);
        let vkey = vkey.split_whitespace().find(|word| word.starts_with("witness.test/w1+")).unwrap().to_owned();
        let (origin, _) = ledger.split_once('+').unwrap();
        Self::ask(folder.path(), &["add-log", "--origin", origin, "--vkey", ledger]);
        let mut witness = Self { folder, port, program: Program::new("the witness"), vkey };
        witness.start().await;
        witness
    }

    fn command(folder: &Path) -> Command {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
        let mut command = Command::new(python);
        command.args(["-m", "aics_witness"]).env("AICS_WITNESS_CONFIG", folder.join("witness.json"));
        command
    }

    fn ask(folder: &Path, args: &[&str]) -> String {
        let output = run(Self::command(folder).args(args));
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        said
    }

    async fn start(&mut self) {
        self.program.spawn(Self::command(self.folder.path()).arg("serve"));
        let client = Client::new(&self.url());
        self.program.ready(SOON, async || client.answers("/healthz").await).await;
    }

    fn stop(&mut self) {
        self.program.kill();
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn setting(&self) -> String {
        format!("witness: {{ url: \"{}\", vkey: \"{}\" }}", self.url(), self.vkey)
    }
}

async fn server_with_witness() -> (Server, Witness) {
    let mut server = Config::new().start().await;
    let client = server.client();
    emit(&client, 3).await;
    let witness = Witness::new(&vkey(&client).await).await;
    assert!(server.stop().await.success());
    server.reconfigure(&[&format!("audit: {{ {} }}", witness.setting())]);
    server.start().await;
    (server, witness)
}

/// Waits until the newest head covers all entries and is cosigned.
async fn cosigned(server: &Server, witness: &Witness) -> String {
    let client = server.client();
    let name = witness.vkey.split('+').next().unwrap().to_owned();
    eventually("a cosignature", SOON, async || {
        Some(sealed(&client).await).filter(|head| head.contains(&format!("\u{2014} {name} ")))
    })
    .await
}

/// The exit code of `mcpg audit verify` where the cosignature is demanded.
fn demanded(server: &Server, key: &str, witness: &str) -> Option<i32> {
    let store = format!("file://{}", server.storage().display());
    let place = ["audit", "verify", "--org", "default", "--store", &store];
    run(mcpg().args(place).args(["--vkey", key, "--witness-vkey", witness])).status.code()
}

#[tokio::test]
async fn each_new_head_is_cosigned_also_after_an_outage_and_a_restart() {
    let (mut server, mut witness) = server_with_witness().await;
    let client = server.client();
    let key = vkey(&client).await;
    // Tiles that are full, begun and in between: each proof is of another form.
    for count in [1, 2, 60, 190, 256, 300] {
        emit(&client, count).await;
        let head = cosigned(&server, &witness).await;
        let size: u64 = head.lines().nth(1).unwrap().parse().unwrap();
        assert_eq!(client.get(&format!("audit/checkpoints/{size}")).await.ok().text(), head);
    }
    verify(&server, "default", &[&key, "--witness", &witness.vkey]).await;

    assert_eq!(demanded(&server, &key, &witness.vkey), Some(0));

    witness.stop();
    emit(&client, 50).await;
    sealed(&client).await;
    assert_eq!(demanded(&server, &key, &witness.vkey), Some(1), "a head without the cosignature will not do");
    server.kill();
    server.start().await;
    emit(&client, 50).await;
    sealed(&client).await;
    // The process that starts anew does not know how far the witness is: that one tells.
    witness.start().await;
    cosigned(&server, &witness).await;
    verify(&server, "default", &[&key, "--witness", &witness.vkey]).await;
    assert!(entries(&client, "action=ledger.verification_failed").await.is_empty());
}

#[tokio::test]
async fn a_witness_that_does_not_answer_holds_nothing_up() {
    let (server, mut witness) = server_with_witness().await;
    cosigned(&server, &witness).await;
    witness.stop();
    let client = server.client();
    emit(&client, 20).await;
    sealed(&client).await;
    let failures = async || {
        let metrics = client.get("/metrics").await.ok().text();
        let line =
            metrics.lines().find(|line| line.starts_with("mcpg_cp_audit_handing_failures_total")).unwrap().to_owned();
        (!line.ends_with(" 0")).then_some(())
    };
    eventually("the failure to be counted", SOON, failures).await;
    witness.start().await;
    cosigned(&server, &witness).await;
}

#[tokio::test]
async fn a_ledger_that_was_rolled_back_and_grew_again_gets_no_cosignature_and_says_so() {
    let (mut server, witness) = server_with_witness().await;
    let client = server.client();
    cosigned(&server, &witness).await;
    assert!(server.stop().await.success());
    let backup = Backup::of(server.storage());
    server.start().await;
    emit(&client, 5).await;
    cosigned(&server, &witness).await;
    server.kill();
    backup.restore();
    server.start().await;
    emit(&client, 50).await;
    let told = eventually("the ledger to say that it did not stand the check", SOON, async || {
        Some(entries(&client, "action=ledger.verification_failed").await).filter(|told| !told.is_empty())
    })
    .await;
    assert_eq!(told[0]["detail"]["check"], "witness");
    let head = sealed(&client).await;
    assert!(!head.contains("witness.test/w1"), "{head}");
}

/// A copy of a store's folder.
struct Backup {
    copy: TempDir,
    original: PathBuf,
}

impl Backup {
    fn of(folder: &Path) -> Self {
        let copy = TempDir::with_prefix("mcpg-backup-").unwrap();
        assert!(run(Command::new("cp").arg("-a").arg(folder.join(".")).arg(copy.path())).status.success());
        Self { copy, original: folder.to_owned() }
    }

    fn restore(&self) {
        std::fs::remove_dir_all(&self.original).unwrap();
        std::fs::create_dir(&self.original).unwrap();
        assert!(run(Command::new("cp").arg("-a").arg(self.copy.path().join(".")).arg(&self.original)).status.success());
    }
}

async fn refused(server: &mut Server) -> String {
    server.spawn();
    assert_eq!(server.ended().await.code(), Some(2), "{}", server.logs());
    server.logs()
}

#[tokio::test]
async fn a_store_that_was_rolled_back_behind_its_mirror_is_not_served() {
    let mirror = TempDir::with_prefix("mcpg-mirror-").unwrap();
    let setting = format!("audit: {{ mirror: {{ url: \"{}\" }} }}", mirror.path().display());
    let mut server = Config::new().with(&setting).start().await;
    let client = server.client();
    emit(&client, 5).await;
    sealed(&client).await;
    assert!(server.stop().await.success());
    let backup = Backup::of(server.storage());
    server.start().await;
    emit(&client, 5).await;
    sealed(&client).await;
    let mirrored = mirror.path().join("orgs/default/audit/checkpoint");
    // A later head may follow: of the entry that the node was started.
    eventually("the mirror's copy", SOON, async || {
        let head = sealed(&client).await;
        (std::fs::read_to_string(&mirrored).unwrap_or_default() == head).then_some(())
    })
    .await;
    assert!(server.stop().await.success());
    server.start().await;
    let size_before = size(&client).await;
    assert!(server.stop().await.success());

    backup.restore();
    let said = refused(&mut server).await;
    assert!(said.contains("was rolled back") && said.contains("default"), "{said}");

    // The thief takes the mirror out of the configuration for a while, and lets the ledger grow past it.
    server.reconfigure(&[]);
    server.start().await;
    while size(&client).await < size_before + 20 {
        emit(&client, 10).await;
    }
    sealed(&client).await;
    assert!(server.stop().await.success());
    server.reconfigure(&[&setting]);
    let said = refused(&mut server).await;
    assert!(said.contains("is another one than the mirror's"), "{said}");
    assert!(folder(&server, "default").join("checkpoint").exists());
}

#[tokio::test]
async fn the_last_head_is_in_the_mirror_when_the_process_has_ended() {
    let mirror = TempDir::with_prefix("mcpg-mirror-").unwrap();
    let setting = format!("audit: {{ mirror: {{ url: \"{}\" }} }}", mirror.path().display());
    let mut server = Config::new().with(&setting).start().await;
    emit(&server.client(), 5).await;
    assert!(server.stop().await.success());
    let read = |folder: &Path| std::fs::read_to_string(folder.join("orgs/default/audit/checkpoint")).unwrap();
    assert_eq!(read(mirror.path()), read(server.storage()));
}
