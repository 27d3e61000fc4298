//! A caller that has been identified.

use std::fmt;
use std::sync::Arc;

use crate::model::CallerName;

/// A caller that has been identified. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Caller(Arc<Known>);

#[derive(PartialEq, Eq, Hash)]
struct Known {
    name: CallerName,
    groups: Vec<String>,
}

impl Caller {
    /// The caller of a name, in groups.
    pub fn new(name: CallerName, mut groups: Vec<String>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        Self(Arc::new(Known { name, groups }))
    }

    /// The caller that did not say who it is.
    pub fn anonymous() -> Self {
        Self::new(CallerName::anonymous(), Vec::new())
    }

    /// Its name: `user:…`, `service:…` or `anonymous`.
    pub fn name(&self) -> &CallerName {
        &self.0.name
    }

    /// The groups it is in, sorted, each once.
    pub fn groups(&self) -> &[String] {
        &self.0.groups
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.name, f)
    }
}
