//! Who comes in, and by which way: people by a real OpenID Connect provider, in a real browser too; tokens, JSON Web
//! Tokens; sessions that end when they are to; pages that may not; TLS.

mod bearers;
mod browser;
mod logins;
mod nodes;
mod pages;
mod people;
mod provider;
mod sessions;
mod tls;

use std::path::Path;
use std::process::Command;

use crate::harness::{Config, Server, mcpg, run, run_with_input};

const READER: &str = "reader-of-acme";
const EMITTER: &str = "emitter-of-acme";
const OPERATOR: &str = "operator-of-all";
const ALICE: &str = "token-of-alice-of-acme";

/// A token's hash, by the program itself.
fn hash(token: &str) -> String {
    let output = run_with_input(mcpg().args(["token", "hash"]), format!("{token}\n").as_bytes());
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

const ORGS: &str = "orgs: [{ name: acme }, { name: umbrella }]";

/// The tokens of two orgs, but for those that are named.
fn tokens_without(gone: &[&str]) -> String {
    let all = [
        ("reader", READER, "acme", "read", ""),
        ("emitter", EMITTER, "acme", "ingest", ""),
        ("operator", OPERATOR, "*", "read, operator", ""),
        ("alice", ALICE, "acme", "read, operator", ", caller: 'user:alice@acme.example'"),
    ];
    let lines = all.into_iter().filter(|(name, ..)| !gone.contains(name)).map(|(name, token, org, roles, more)| {
        format!("  - {{ name: {name}, hash: \"{}\", org: \"{org}\", roles: [{roles}]{more} }}\n", hash(token))
    });
    format!("tokens:\n{}", lines.collect::<String>())
}

/// A control plane with tokens.
fn with_tokens() -> Config {
    Config::new().with(ORGS).with(&tokens_without(&[])).token(OPERATOR)
}

/// The ledger of an org, newest entry first, as an operator reads it.
async fn entries(server: &Server, org: &str, action: &str) -> Vec<serde_json::Value> {
    let answer = server.client().with_org(org).get(&format!("audit?action={action}")).await.ok();
    answer.json()["entries"].as_array().unwrap().clone()
}

/// Certificates that openssl makes in a folder: authorities, and what they sign.
struct Certificates<'a>(&'a Path);

impl Certificates<'_> {
    fn openssl(&self, args: &[&str]) {
        let output = run(Command::new(crate::harness::tool("openssl")).args(args).current_dir(self.0));
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// An authority: `<name>.pem` and `<name>.key`.
    fn authority(&self, name: &str) {
        let (cert, key, subject) = (format!("{name}.pem"), format!("{name}.key"), format!("/CN={name}"));
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let extension = ["-addext", "basicConstraints=critical,CA:TRUE"];
        self.openssl(&[&new[..], &extension, &["-subj", &subject, "-out", &cert, "-keyout", &key]].concat());
    }

    /// A certificate of 127.0.0.1 that an authority signs: `<name>.pem` and `<name>.key`.
    fn signed(&self, name: &str, authority: &str) {
        let [cert, key, request] = [".pem", ".key", ".csr"].map(|end| format!("{name}{end}"));
        let (by, by_key) = (format!("{authority}.pem"), format!("{authority}.key"));
        let subject = format!("/CN={name}");
        let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", &subject];
        self.openssl(&[&new[..], &["-out", &request, "-keyout", &key]].concat());
        std::fs::write(self.0.join("names.cnf"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        let sign = ["x509", "-req", "-in", &request, "-CA", &by, "-CAkey", &by_key, "-days", "2", "-set_serial"];
        let serial = format!("{}", 1 + name.bytes().map(u64::from).sum::<u64>());
        self.openssl(&[&sign[..], &[&serial, "-extfile", "names.cnf", "-out", &cert]].concat());
    }

    fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.0.join(file)).unwrap()
    }
}
