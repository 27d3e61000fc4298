//! What the nodes of one deployment share: a store, the ledger's key, settings. And what lies on a store, as a thief or
//! a disk sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Config, mcpg, run};

/// One deployment.
#[derive(Debug)]
pub(crate) struct Cluster {
    folder: TempDir,
    yaml: String,
}

impl Cluster {
    /// A deployment without a node, whose nodes have these settings beside store and key.
    pub(crate) fn new(yaml: &str) -> Self {
        Self { folder: TempDir::with_prefix("mcpg-cluster-").unwrap(), yaml: yaml.to_owned() }
    }

    /// The settings of orgs by their names.
    pub(crate) fn orgs(names: &[String]) -> String {
        let orgs: Vec<_> = names.iter().map(|name| format!("{{ name: {name}, tier: enterprise }}")).collect();
        format!("orgs: [{}]", orgs.join(", "))
    }

    /// A further node.
    pub(crate) fn node(&self) -> Config {
        self.node_with_key(&self.key_file())
    }

    /// A node on this store whose key is another one.
    pub(crate) fn node_with_key(&self, key: &Path) -> Config {
        let audit = format!("audit: {{ key_file: {} }}", key.display());
        Config::on(self.store().path()).with(&self.yaml).with(&audit)
    }

    /// The file with the key that signs the ledgers.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.folder.path().join("ledger.key")
    }

    /// The store.
    pub(crate) fn store(&self) -> Folder {
        Folder(self.folder.path().join("store"))
    }

    /// The same deployment as it is at this moment, on a store of its own.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new(&self.yaml);
        self.store().copy_to(copy.store().path());
        std::fs::copy(self.key_file(), copy.key_file()).unwrap();
        copy
    }
}

/// A folder of objects: a store, or a part of one.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The path of an object.
    pub(crate) fn file(&self, object: &str) -> PathBuf {
        self.0.join(object)
    }

    /// The objects whose names begin with `prefix`, in order; those that another process deletes meanwhile are left
    /// out.
    pub(crate) fn list(&self, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        collect(&self.0, "", &mut found);
        found.retain(|name| name.starts_with(prefix));
        found.sort();
        found
    }

    /// The last object, in order, whose name begins with `prefix` and ends with `suffix`.
    #[track_caller]
    pub(crate) fn newest(&self, prefix: &str, suffix: &str) -> String {
        let found = self.list(prefix).into_iter().rfind(|name| name.ends_with(suffix));
        found.unwrap_or_else(|| panic!("there is no object {prefix}…{suffix} in the store: {:?}", self.list("")))
    }

    /// The object whose name begins with `prefix` and ends with the greatest number: a partial tile, say, is
    /// `…/000.p/27`.
    #[track_caller]
    pub(crate) fn greatest(&self, prefix: &str) -> String {
        let number = |name: &String| name.rsplit('/').next().and_then(|number| number.parse::<u64>().ok());
        let found = self.list(prefix).into_iter().filter(|name| number(name).is_some()).max_by_key(number);
        found.unwrap_or_else(|| panic!("there is no object {prefix}… in the store: {:?}", self.list("")))
    }

    /// The numbers of the log's objects, ascending.
    pub(crate) fn log(&self) -> Vec<u64> {
        let names = std::fs::read_dir(self.file("wal")).into_iter().flatten().filter_map(Result::ok);
        let numbers = names.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.parse().ok().filter(|_| name.len() == 20)
        });
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.sort_unstable();
        numbers
    }

    /// The greatest floor that was raised, if any was.
    pub(crate) fn floor(&self) -> Option<u64> {
        self.list("wal/floor/").last().and_then(|name| name.rsplit('/').next()?.parse().ok())
    }

    pub(crate) fn read(&self, object: &str) -> Vec<u8> {
        std::fs::read(self.file(object)).unwrap_or_else(|e| panic!("{object}: {e}"))
    }

    /// Writes an object, whether there is one or not.
    pub(crate) fn write(&self, object: &str, bytes: &[u8]) {
        let path = self.file(object);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub(crate) fn remove(&self, object: &str) {
        std::fs::remove_file(self.file(object)).unwrap_or_else(|e| panic!("{object}: {e}"));
    }

    /// Flips one bit of an object; a negative place counts from its end.
    pub(crate) fn flip(&self, object: &str, place: isize, bit: u8) {
        let mut bytes = self.read(object);
        let at = if place < 0 { bytes.len() - place.unsigned_abs() } else { place.unsigned_abs() };
        bytes[at] ^= 1 << bit;
        self.write(object, &bytes);
    }

    /// Puts what another folder holds in the place of all that is here.
    pub(crate) fn replace_with(&self, other: &Self) {
        std::fs::remove_dir_all(&self.0).unwrap();
        other.copy_to(&self.0);
    }

    /// Copies all objects.
    pub(crate) fn copy_to(&self, target: &Path) {
        for name in self.list("") {
            let to = target.join(&name);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            // What is deleted while it is copied is not in the copy.
            drop(std::fs::copy(self.file(&name), to));
        }
    }

    /// Every object with the hash of its bytes.
    pub(crate) fn digest(&self) -> BTreeMap<String, String> {
        let hash = |name: String| {
            let hash = blake3::hash(&self.read(&name)).to_hex().to_string();
            (name, hash)
        };
        self.list("").into_iter().map(hash).collect()
    }
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), &format!("{name}/"), found),
            Ok(_) => found.push(name),
            Err(_) => {}
        }
    }
}

/// What `mcpg audit verify` says of an org's ledger in a store: its exit code, and both of its outputs.
pub(crate) async fn verify_ledger(store: &Path, org: &str, vkey: &str) -> (i32, String) {
    let mut command = mcpg();
    command.args(["audit", "verify", "--org", org, "--vkey", vkey, "--store"]).arg(store).env_remove("MCPG_TOKEN");
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

/// Asserts that an org's ledger in a store is sound.
pub(crate) async fn assert_sound(store: &Path, org: &str, vkey: &str) {
    let (code, said) = verify_ledger(store, org, vkey).await;
    assert_eq!(code, 0, "the ledger of {org}: {said}");
}
