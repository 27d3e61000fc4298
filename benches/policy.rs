//! What a policy decision costs, by what the policies look at and by how many there are.

#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up should stop")]

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mcpg::config::PolicySource;
use mcpg::gateway::identity::Caller;
use mcpg::gateway::policy::{Abilities, Action, Policy, Question};
use mcpg::model::SystemClock;
use serde_json::{Map, Value};

/// So many policies, each of a group and a plugin; with `arguments`, each that forbids looks at one of the call's.
fn policy(count: usize, arguments: bool) -> Policy {
    let mut text = String::new();
    for n in 0..count / 2 {
        writeln!(text, "permit(principal in Group::\"g{n}\", action, resource in Plugin::\"p{n}\");").unwrap();
        let look = if arguments {
            "context.arguments.text.hasTag(\"/repo/owner\") && context.arguments.text.getTag(\"/repo/owner\") == \"no\""
        } else {
            "principal.name == \"no\""
        };
        writeln!(
            text,
            "forbid(principal, action == Action::\"call_tool\", resource in Plugin::\"p{n}\") when {{ {look} }};"
        )
        .unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.cedar");
    std::fs::write(&file, text).unwrap();
    let source = PolicySource::Files(vec![file.display().to_string()]);
    Policy::start(&source, "prod", Abilities::default(), Arc::new(SystemClock)).unwrap()
}

fn decisions(c: &mut Criterion) {
    let groups = (0..4).map(|n| format!("g{n}")).collect();
    let caller = Caller::new("user:ann@acme.com".parse().unwrap(), groups);
    let arguments: Map<String, Value> = serde_json::from_value(serde_json::json!({
        "repo": { "owner": "acme", "name": "web" }, "title": "It does not work", "body": "x".repeat(4096), "labels": ["bug"],
    }))
    .unwrap();
    let question = Question { arguments: Some(&arguments), ..Question::new(&caller, Action::CallTool, "p1", "create") };
    let mut group = c.benchmark_group("decide");
    for count in [10, 100, 1000] {
        for looks_at_arguments in [false, true] {
            let policy = policy(count, looks_at_arguments);
            let name = if looks_at_arguments { "arguments" } else { "remembered" };
            assert!(policy.decide(&question).is_permit());
            group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| black_box(policy.decide(&question))));
        }
    }
    group.finish();
    let listing = policy(100, true);
    c.bench_function("may_list", |b| {
        b.iter(|| black_box(listing.may_list(&caller, Action::CallTool, "p1", "create")));
    });
}

criterion_group!(benches, decisions);
criterion_main!(benches);
