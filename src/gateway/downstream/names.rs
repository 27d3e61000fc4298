//! Names at the endpoint of all plugins: `<plugin>__<name>`. A plugin's name holds no `__`, so the first one parts
//! them.

use crate::gateway::call::client::Endpoint;

const SEPARATOR: &str = "__";

/// A plugin's own name for something, as the endpoint of all plugins has it.
pub(super) fn join(plugin: &str, name: &str) -> String {
    format!("{plugin}{SEPARATOR}{name}")
}

/// Which plugin a client's name is of, and what that plugin calls it. `None`: there is no such plugin.
pub(super) fn resolve<'a>(endpoint: &Endpoint, name: &'a str) -> Option<(usize, &'a str)> {
    if !endpoint.namespaced {
        return (!endpoint.plugins.is_empty()).then_some((0, name));
    }
    let (plugin, name) = name.split_once(SEPARATOR)?;
    let index = endpoint.plugins.iter().position(|known| known.name() == plugin)?;
    Some((index, name))
}
