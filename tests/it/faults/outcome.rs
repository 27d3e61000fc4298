//! What a control plane makes of a store that was damaged or tampered with. Two things are right: to serve all that was
//! acknowledged, or to refuse and name the object. Never to serve less as if it were all.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Account, Batch, Client, Cluster, Config, Server, Started, assert_recovers, eventually, org_names, vkeys,
};
use crate::ledger::chain;

/// How long a start may take, in a refusal too.
const START: Duration = Duration::from_secs(60);

/// How long a node may take to load an org, on a machine that is busy with other tests.
const SETTLE: Duration = Duration::from_secs(60);

/// A deployment that has seen some life and was killed, to be copied and spoiled.
#[derive(Debug)]
pub(super) struct Lived {
    pub(super) cluster: Cluster,
    pub(super) orgs: Vec<String>,
    pub(super) account: Account,
    pub(super) vkeys: std::collections::BTreeMap<String, String>,
}

impl Lived {
    /// Three orgs, each with a dozen batches; `yaml` says how much of that is flushed.
    pub(super) async fn of(yaml: &str, orderly: bool) -> Self {
        let orgs = org_names(3);
        let cluster = Cluster::new(&format!("{}\n{yaml}", Cluster::orgs(&orgs)));
        let mut server = cluster.node().start().await;
        let (client, mut account) = (server.client(), Account::default());
        for round in 1..=4_usize {
            assert_recovers(&client, &orgs, &mut account).await;
            for org in &orgs {
                assert!(Batch::samples(5).with_key().send_noted(&client, org, &mut account).await);
                assert!(Batch::events(5).with_key().send_noted(&client, org, &mut account).await);
            }
            // For flushes, segments and heads to fall between, and for what came last to be under a head.
            tokio::time::sleep(Duration::from_millis(if round < 4 { 550 } else { 2_000 })).await;
            // On a busy machine flushes come late, and each org is to have an older state beside its newest.
            let least = if yaml.contains("300ms") { round.min(2) } else { 0 };
            eventually("the states of each org", SETTLE, async || {
                let lacks = |org: &String| cluster.store().list(&format!("orgs/{org}/state/")).len() < least;
                (!orgs.iter().any(lacks)).then_some(())
            })
            .await;
        }
        for org in &orgs {
            chain::sealed(&client.with_org(org)).await;
        }
        let vkeys = vkeys(&client, &orgs).await;
        if orderly {
            assert!(server.stop().await.success());
        } else {
            server.kill();
        }
        Self { cluster, orgs, account, vkeys }
    }

    /// The same on a store of its own.
    pub(super) fn copy(&self) -> Self {
        let (cluster, orgs) = (self.cluster.copy(), self.orgs.clone());
        Self { cluster, orgs, account: self.account.clone(), vkeys: self.vkeys.clone() }
    }

    /// Starts a node on it.
    pub(super) async fn look(self) -> Look {
        let config = self.cluster.node();
        self.look_with(config).await
    }

    pub(super) async fn look_with(self, config: Config) -> Look {
        let mut server = config.server();
        let started = server.try_start(START).await;
        Look { lived: self, server, started }
    }
}

/// What an org's data turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// All that was acknowledged, and it goes on.
    Whole,
    /// Refusals, which say this.
    Refused(String),
}

/// A node that was started on a spoiled store.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) lived: Lived,
    pub(super) server: Server,
    pub(super) started: Started,
}

impl Look {
    /// What of an org: everything must be refused alike, or be there in every view, before and after more is sent and
    /// after another restart.
    pub(super) async fn found(&mut self, org: &str) -> Found {
        if self.started != Started::Ready {
            return Found::Refused(self.server.logs());
        }
        let client = self.server.client();
        if let Some(refusal) = refusal(&client.with_org(org)).await {
            // What it takes all the same must be there when it can be read again.
            for batch in [Batch::samples(1), Batch::events(1)] {
                batch.send_noted(&client, org, &mut self.lived.account).await;
            }
            return Found::Refused(refusal);
        }
        let at = self.lived.orgs.iter().position(|name| name == org).unwrap();
        self.lived.account.assert_kept_of(&client, |other| other == at).await;
        for batch in [Batch::samples(2), Batch::events(2)] {
            let answer = batch.send(&client.with_org(org)).await.unwrap();
            let acknowledged = answer.status.as_u16() == 200;
            self.lived.account.note(org, batch.is_events, &batch.request, batch.rows, acknowledged);
            if !acknowledged {
                return Found::Refused(answer.text());
            }
        }
        self.lived.account.assert_kept_of(&client, |other| other == at).await;
        Found::Whole
    }

    /// What of an org that nothing is wrong with: whole, unless it is still refused at the end of a minute.
    pub(super) async fn found_well(&mut self, org: &str) -> Found {
        self.settled(org, |_| false).await
    }

    /// What of an org, once it is more than a node that is still loading, or catching up: whole, or refused for a
    /// reason that is final; else what it was at the end of a minute.
    pub(super) async fn settled(&mut self, org: &str, is_final: impl Fn(&str) -> bool) -> Found {
        let deadline = tokio::time::Instant::now() + SETTLE;
        loop {
            let found = self.found(org).await;
            let settled = match &found {
                Found::Whole => true,
                Found::Refused(why) => is_final(why),
            };
            if settled || self.started != Started::Ready || tokio::time::Instant::now() > deadline {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Asserts that a refused request names the object that is wrong, that one is refused or the log at least names it,
    /// and that every org but the `hurt` ones is whole; then that a restart finds the same.
    pub(super) async fn assert_told(mut self, object: &str, hurt: &[&str]) {
        let name = object.rsplit('/').next().unwrap();
        for round in 0..2 {
            let mut said = String::new();
            for org in self.lived.orgs.clone() {
                match self.settled(&org, |why| hurt.contains(&&*org) && why.contains(name)).await {
                    Found::Whole => {}
                    Found::Refused(why) => {
                        assert!(hurt.contains(&&*org), "org {org} is refused, for {object}: {why}");
                        assert!(why.contains(name), "{object} is not named to org {org}: {why}");
                        said.push_str(&why);
                    }
                }
            }
            if !said.contains(name) {
                let what = format!("{object} to be named by the log at least");
                eventually(&what, SETTLE, async || self.server.logs().contains(name).then_some(())).await;
            }
            if round == 0 && !self.restart().await {
                return;
            }
        }
    }

    /// Starts it again. False, and not tried, if it refused to start: it would again.
    async fn restart(&mut self) -> bool {
        if self.started != Started::Ready {
            return false;
        }
        self.server.kill();
        self.started = self.server.try_start(START).await;
        true
    }

    /// Asserts that every org is whole, also after a restart, or is refused for a reason that names one of the objects.
    pub(super) async fn assert_whole_or_told(mut self, objects: &[&str]) {
        for round in 0..2 {
            for org in self.lived.orgs.clone() {
                let names_one = |why: &str| objects.iter().any(|name| why.contains(name));
                if let Found::Refused(why) = self.settled(&org, names_one).await {
                    assert!(objects.iter().any(|name| why.contains(name)), "org {org}, none of {objects:?}: {why}");
                }
            }
            if round == 0 && !self.restart().await {
                return;
            }
        }
    }
}

/// Why an org's data cannot be read, if it cannot: the first refusal of any view that is one of damage, not of a
/// moment.
pub(super) async fn refusal(client: &Client) -> Option<String> {
    let mut last = None;
    for _ in 0..10 {
        last = refused_now(client).await;
        match &last {
            None => return None,
            Some(why) if why.contains("org_stopped") => return last,
            // A node that is catching up, or loading again.
            Some(_) => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
    last
}

async fn refused_now(client: &Client) -> Option<String> {
    let everything = [
        "SELECT count(*), max(tool), max(invocation_id), max(request_id) FROM tool_invocations",
        "SELECT sum(calls), max(tool) FROM tool_usage_hourly",
        "SELECT count(*), max(actor), max(event_id), max(salt), max(entry_hash), max(detail) FROM audit_log",
    ];
    for query in everything {
        let answer = client.sql_as(query, json!([]), "application/json").await;
        if !answer.status.is_success() {
            return Some(answer.text());
        }
    }
    let metrics = client.get("metrics").await;
    (!metrics.status.is_success()).then(|| metrics.text())
}
