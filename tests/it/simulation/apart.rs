//! A life in a process of its own: this program again, which lives one life and writes down what became of it.
//!
//! So a seed is the same life whichever came before it in this process, a life that hangs is ended by the clock, and a
//! failure is repeated by one command.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::life::{Plan, Summary, live};
use super::rules::RULES;

const PLAN: &str = "MCPG_SIMULATION_PLAN";
const SEED: &str = "MCPG_SIMULATION_SEED";
const RULE: &str = "MCPG_SIMULATION_RULE";
const OUT: &str = "MCPG_SIMULATION_OUT";
/// The name of the test that lives one life.
const TEST: &str = "simulation::apart::one_life";
/// The longest that a life takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);
/// Lines of a trace that a failure is printed with.
const SHOWN: usize = 120;

/// What another process says of its life.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) plan: Plan,
    pub(super) seed: u64,
    rule: Option<&'static str>,
    pub(super) outcome: Result<Summary, String>,
    /// What must be the same each time, and all that was noted.
    pub(super) canonical: String,
    printed: String,
}

impl Told {
    /// Fails with all that is known, if it came to a bad end.
    pub(super) fn unwrap(self) -> Summary {
        match &self.outcome {
            Ok(summary) => *summary,
            Err(reason) => panic!("{}\n{}: {reason}", self.trace(), self.name()),
        }
    }

    pub(super) fn name(&self) -> String {
        let rule = self.rule.map(|rule| format!(" {RULE}={rule}")).unwrap_or_default();
        format!("{PLAN}={} {SEED}={}{rule} cargo test --test it {TEST} -- --ignored", self.plan.name(), self.seed)
    }

    /// The end of its trace.
    pub(super) fn trace(&self) -> String {
        let lines: Vec<_> = self.printed.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

#[expect(clippy::disallowed_methods, reason = "no runtime is here whose thread could be blocked")]
fn wait_a_little() {
    std::thread::sleep(Duration::from_millis(5));
}

/// Lives the life of a seed in another process, with one rule switched off or none.
pub(super) fn live_apart(plan: Plan, seed: u64, rule: Option<&'static str>) -> Told {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--ignored", "--nocapture"])
        .env(PLAN, plan.name())
        .env(SEED, seed.to_string())
        .env(RULE, rule.unwrap_or_default())
        .env(OUT, folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let status = loop {
        match life.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if began.elapsed() > LIMIT => {
                life.kill().unwrap();
                life.wait().unwrap();
                break None;
            }
            None => wait_a_little(),
        }
    };
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let outcome = match (read("summary").parse::<Summary>(), read("reason")) {
        (Ok(summary), _) => Ok(summary),
        (Err(_), reason) if !reason.is_empty() => Err(reason),
        _ => Err(format!("the life has not come to an end: {status:?}")),
    };
    Told { plan, seed, rule, outcome, canonical: read("canonical"), printed: read("trace") }
}

impl std::str::FromStr for Summary {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut numbers = text.split(' ').map(str::parse);
        let mut next = || numbers.next().unwrap_or_else(|| "".parse());
        Ok(Self { operations: next()?, acknowledged: next()?, answers: next()?, seconds: next()? })
    }
}

#[test]
#[ignore = "one life, which the other tests run in a process of its own"]
fn one_life() {
    let from = |name: &str| std::env::var(name).unwrap_or_default();
    let plan = Plan::ALL.into_iter().find(|plan| plan.name() == from(PLAN)).unwrap_or(Plan::Wild);
    let rule = from(RULE);
    let alter = RULES.iter().find(|(name, _)| *name == rule).map_or((|_| {}) as fn(&mut _), |(_, alter)| *alter);
    let lived = live(plan, from(SEED).parse().unwrap_or(0), alter);
    let Some(out) = std::env::var_os(OUT) else {
        println!("{}", lived.trace.print());
        panic!("{:?}", lived.outcome);
    };
    let write = |name: &str, text: String| std::fs::write(Path::new(&out).join(name), text).unwrap();
    write("canonical", lived.trace.canonical().join("\n"));
    write("trace", lived.trace.print());
    match lived.outcome {
        Ok(Summary { operations, acknowledged, answers, seconds }) => {
            write("summary", format!("{operations} {acknowledged} {answers} {seconds}"));
        }
        Err(reason) => write("reason", reason),
    }
}
