//! Connections that do nothing, more than there are descriptors.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::harness::{Client, Program, Sample, free_port, mcpg, ndjson};

/// What the server may open.
const DESCRIPTORS: u64 = 1_024;

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_past_the_descriptors_leave_ingest_and_health_unharmed() {
    let open = rlimit::increase_nofile_limit(4_096).unwrap();
    assert!(open >= 2_048, "the test itself needs descriptors, and has {open}");
    let (folder, port) = (TempDir::new().unwrap(), free_port());
    let mut program = Program::new("the control plane");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {DESCRIPTORS} && exec \"$@\""), "sh"]).arg(mcpg().get_program());
    command
        .args(["control-plane", "--listen", &format!("127.0.0.1:{port}"), "--storage"])
        .arg(folder.path().join("store"));
    program.spawn(command.current_dir(folder.path()));
    let client = Client::new(&format!("http://127.0.0.1:{port}"));
    program.ready(Duration::from_secs(90), async || client.ready().await.is_some()).await;

    let mut idle = Vec::new();
    for number in 0..1_100 {
        idle.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        if number % 100 == 99 {
            // Of a connection of its own each time.
            let client = Client::new(&format!("http://127.0.0.1:{port}"));
            client.post(ndjson(&[Sample::new("github", "list_repos", 5.0)]), None).await;
            assert!(client.answers("/healthz").await && client.answers("/readyz").await);
        }
    }
    assert_eq!(client.count().await, 11);
    assert!(!program.logs().contains("Too many open files"), "{}", program.logs());
}
