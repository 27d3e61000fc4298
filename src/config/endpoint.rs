//! A URL as a setting.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// The URL of a server that is spoken to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint(Url);

impl Endpoint {
    /// The control plane of this machine, at its default address.
    #[expect(clippy::expect_used, reason = "a constant; the tests of the defaults read it")]
    pub(super) fn local_control_plane() -> Self {
        Self(Url::parse("http://127.0.0.1:7843").expect("a constant URL is sound"))
    }
}

impl Endpoint {
    /// Whether what is read from there cannot be changed on its way: `https://`, or `http://` on loopback.
    pub fn is_confidential(&self) -> bool {
        let loopback = match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        self.0.has_host() && (self.0.scheme() == "https" || (self.0.scheme() == "http" && loopback))
    }
}

impl Deref for Endpoint {
    type Target = Url;

    fn deref(&self) -> &Url {
        &self.0
    }
}

impl From<Url> for Endpoint {
    fn from(url: Url) -> Self {
        Self(url)
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Url::parse(&text).map(Self).map_err(|e| format!("`{text}` is no URL: {e}"))
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.0.into()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}
