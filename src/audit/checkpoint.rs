//! A head of the ledger: a C2SP tlog-checkpoint (<https://c2sp.org/tlog-checkpoint>) of exactly three lines.
//!
//! ```text
//! <deployment>/orgs/<org>/audit/<generation>
//! <number of entries>
//! <root hash, base64>
//! ```

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{AuditError, Hash};
use crate::model::OrgName;

/// The generation of every ledger so far: a ledger that had to be begun anew would be of the next one.
const GENERATION: u32 = 1;

/// The origin of an org's ledger in the deployment `name`; also the name of the key that signs its checkpoints.
pub fn origin(name: &str, org: &OrgName) -> String {
    format!("{name}/orgs/{org}/audit/{GENERATION}")
}

/// Whether `origin` is that of a ledger of the org, whatever the deployment.
pub fn is_of(origin: &str, org: &str) -> bool {
    let generation = |text: &str| text.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == text);
    let rest = origin.rsplit_once('/').filter(|(_, last)| generation(last)).map(|(rest, _)| rest);
    let name = rest.and_then(|rest| rest.strip_suffix(&format!("/orgs/{org}/audit")));
    name.is_some_and(|name| !name.is_empty())
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose.
    pub origin: String,
    /// How many entries.
    pub size: u64,
    /// The root of the tree over their leaves.
    pub root: Hash,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, BASE64.encode(self.root.0))
    }
}

impl FromStr for Checkpoint {
    type Err = AuditError;

    /// Reads the text of a note.
    fn from_str(text: &str) -> Result<Self, AuditError> {
        let malformed = |reason: &str| AuditError::Malformed(format!("this is no checkpoint: {reason}"));
        let lines: Vec<_> = text.strip_suffix('\n').unwrap_or(text).split('\n').collect();
        let [origin, size, root] = lines.as_slice() else { return Err(malformed("it has not exactly three lines")) };
        let number = size.parse::<u64>().ok().filter(|number| number.to_string() == *size);
        let root_bytes = BASE64.decode(root).ok().and_then(|bytes| bytes.try_into().ok());
        let checkpoint = Self {
            origin: (*origin).to_owned(),
            size: number.ok_or_else(|| malformed("its second line is not a number of entries"))?,
            root: root_bytes.map(Hash).ok_or_else(|| malformed("its third line is not 32 bytes in base64"))?,
        };
        if origin.is_empty() { Err(malformed("it has no origin")) } else { Ok(checkpoint) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Checkpoint, is_of, origin};
    use crate::audit::Hash;

    #[test]
    fn a_checkpoint_is_three_lines_and_can_be_read_back() {
        let origin = origin("mcpg.local", &"acme".parse().unwrap());
        let checkpoint = Checkpoint { origin, size: 7, root: Hash([0; 32]) };
        let text = format!("mcpg.local/orgs/acme/audit/1\n7\n{}=\n", "A".repeat(43));
        assert_eq!(checkpoint.to_string(), text);
        assert_eq!(text.parse(), Ok(checkpoint));
        for bad in
            [text.replace("7\n", "07\n"), text.replace("7\n", "-7\n"), format!("{text}x\n"), text.replace('A', "")]
        {
            assert!(bad.parse::<Checkpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_of_the_org_whatever_the_deployment() {
        for good in ["mcpg.local/orgs/acme/audit/1", "a.example/b/orgs/acme/audit/12"] {
            assert!(is_of(good, "acme"), "{good}");
        }
        for bad in [
            "mcpg.local/orgs/globex/audit/1",
            "/orgs/acme/audit/1",
            "x/orgs/acme/audit/0",
            "x/orgs/acme/audit/01",
            "acme",
            "",
        ] {
            assert!(!is_of(bad, "acme"), "{bad}");
        }
    }
}
