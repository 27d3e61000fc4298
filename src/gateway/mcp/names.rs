//! Names at the endpoint of all plugins: `<plugin>__<name>`. A plugin's name holds no `__`, so the first one parts them.

use super::session::Endpoint;

const SEPARATOR: &str = "__";

/// A plugin's own name for something, as the endpoint of all plugins has it.
pub(super) fn join(plugin: &str, name: &str) -> String {
    format!("{plugin}{SEPARATOR}{name}")
}

impl Endpoint {
    /// Which plugin a client's name is of, and what that plugin calls it. `None`: there is no such plugin.
    pub(super) fn resolve<'a>(&self, name: &'a str) -> Option<(usize, &'a str)> {
        if !self.namespaced {
            return (!self.plugins.is_empty()).then_some((0, name));
        }
        let (plugin, name) = name.split_once(SEPARATOR)?;
        let index = self.plugins.iter().position(|known| known.name() == plugin)?;
        Some((index, name))
    }
}
