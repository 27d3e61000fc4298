//! The protocol of the log, rules L1 to L4, and how an org's states are stored, L5, as explicit-state models
//! (`tests/model/`): with every rule each state of the bounded configurations keeps its promises, and without any one of
//! them some state does not.

use std::path::Path;
use std::process::Command;

#[test]
fn the_protocol_holds_with_every_rule_and_breaks_without_any_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model");
    let checked = Command::new("python3").arg(folder.join("check.py")).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stderr));
    for rule in ["L1", "L2", "L3", "L4", "counts", "chain", "deletes", "any"] {
        let found = format!("without-{rule}: counterexample");
        assert!(said.contains(&found), "no counterexample without {rule}:\n{said}");
    }
    let complete =
        said.lines().filter(|line| line.contains("no counterexample") && line.contains(", complete")).count();
    assert!(complete >= 6, "fewer configurations were visited whole than there are:\n{said}");
}
