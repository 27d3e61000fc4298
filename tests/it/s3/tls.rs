//! A bucket over TLS: `ca_file` names the authorities that are trusted, and no others.

use std::time::Duration;

use mcpg::config::Storage;
use mcpg::storage::{Created, Store};
use object_store::path::Path;
use tempfile::TempDir;

use crate::harness::s3::{Bucket, Seaweed};
use crate::harness::{Program, eventually, free_port, python_command};

const PATIENCE: Duration = Duration::from_secs(60);

/// What takes TLS off before a service, with a certificate of an authority of its own.
struct Front {
    _program: Program,
    port: u16,
    folder: TempDir,
}

impl Front {
    async fn before(endpoint: &str) -> Self {
        let (mut program, port) = (Program::new("what takes TLS off"), free_port());
        let folder = TempDir::with_prefix("mcpg-tls-").unwrap();
        let target = url::Url::parse(endpoint).unwrap().port().unwrap().to_string();
        program.spawn(python_command("tls_front.py").args([&port.to_string(), &target]).arg(folder.path()));
        eventually("it to listen", PATIENCE, async || program.logs().contains("ready").then_some(())).await;
        Self { _program: program, port, folder }
    }

    fn settings(&self, bucket: &Bucket, ca_of: Option<&Self>) -> Storage {
        let ca_file = ca_of.map(|front| front.folder.path().join("ca.pem"));
        Storage { ca_file, ..bucket.at(&format!("https://127.0.0.1:{}", self.port)).settings("tls") }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_reached_over_tls_if_its_authority_is_trusted_and_by_no_other() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let (front, other) = (Front::before(&bucket.endpoint).await, Front::before(&bucket.endpoint).await);
    let create = async |settings: Storage| {
        Store::open_with(&settings).unwrap().create(&Path::from("x"), "over TLS".into()).await
    };
    for mistrusted in [front.settings(&bucket, None), front.settings(&bucket, Some(&other))] {
        match create(mistrusted).await {
            Created::Unknown(e) => assert!(e.to_string().contains("certificate"), "{e}"),
            created => panic!("{created:?}"),
        }
    }
    let trusted = create(front.settings(&bucket, Some(&front))).await;
    assert!(matches!(trusted, Created::Won), "{trusted:?}");
    assert_eq!(bucket.store("tls").get(&Path::from("x")).await.unwrap().unwrap(), "over TLS");
}
