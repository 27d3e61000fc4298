//! Asking a control plane over HTTP: what the subcommands that do so share.

use std::convert::Infallible;

use reqwest::Client;
use url::{Host, Url};

use super::CliError;
use crate::config::Secret;
use crate::model::causes;

/// A token of the command line or the environment.
pub(super) fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// A client for this server.
pub(super) fn client(url: &Url) -> Result<Client, CliError> {
    let mut client = Client::builder();
    if is_loopback(url) {
        // No proxy leads to this machine.
        client = client.no_proxy();
    }
    client.build().map_err(|error| CliError::could_not("the HTTP client", error))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The URL of a path on the server.
pub(super) fn path(base: &Url, segments: &[&str]) -> Result<Url, CliError> {
    let mut url = base.clone();
    let extended = url.path_segments_mut().map(|mut path| {
        path.pop_if_empty().extend(segments);
    });
    extended.map_err(|()| CliError::CouldNot(format!("{base} is no http:// URL")))?;
    Ok(url)
}

/// That the server did not answer, and why.
pub(super) fn not_reached(url: &Url, error: &reqwest::Error) -> CliError {
    CliError::could_not(format!("{url} is not reached"), causes(error))
}
