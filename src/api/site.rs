//! How this control plane is reached: the hosts that it answers to, and the origin that its own pages have there.
//!
//! A host is a name and a port. Requests without a bearer token may name this machine's own names with our port,
//! `public_url`'s host, and those of `allowed_hosts`: one written with a port as it stands, one without with our port
//! or, behind a proxy at the scheme's own, none.

use crate::config::ControlPlane;

/// This machine's own names.
const LOOPBACK: [&str; 3] = ["127.0.0.1", "[::1]", "localhost"];

/// The hosts and the origin of this control plane.
#[derive(Debug, Clone)]
pub(super) struct Site {
    port: u16,
    tls: bool,
    allowed: Vec<String>,
    public: Option<Place>,
}

/// One of the places that it is reached at, as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The host as browsers write it: in lower case, without the scheme's own port.
    host: String,
    secure: bool,
    loopback: bool,
}

impl Place {
    fn new(secure: bool, name: &str, port: u16) -> Self {
        let own = if secure { 443 } else { 80 };
        let host = if port == own { name.to_owned() } else { format!("{name}:{port}") };
        Self { host, secure, loopback: LOOPBACK.contains(&name) }
    }

    /// The origin of pages from there: what a browser sends as `Origin`.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.host)
    }

    /// Whether it is reached over TLS, our own or a proxy's.
    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it is this machine's own name.
    pub(super) fn is_loopback(&self) -> bool {
        self.loopback
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        split(&self.host).and_then(|(_, port)| port).unwrap_or(if self.secure { 443 } else { 80 })
    }
}

impl Site {
    /// The site that these settings say, at a port.
    pub(super) fn new(settings: &ControlPlane, port: u16) -> Self {
        let public = settings.public_url.as_ref().and_then(|url| {
            let port = url.port_or_known_default()?;
            Some(Place::new(url.scheme() == "https", url.host_str()?, port))
        });
        let allowed = settings.allowed_hosts.iter().map(|host| bracketed(&host.to_ascii_lowercase())).collect();
        Self { port, tls: settings.tls.is_some(), allowed, public }
    }

    /// How people reach it, if that is said.
    pub(super) fn public(&self) -> Option<&Place> {
        self.public.as_ref()
    }

    /// The place that a request names as its host; none if it must not.
    pub(super) fn place(&self, host: &str) -> Option<Place> {
        let host = host.to_ascii_lowercase();
        let (name, port) = split(&host)?;
        if let Some(public) = &self.public
            && Place::new(public.secure, name, port.unwrap_or(if public.secure { 443 } else { 80 })) == *public
        {
            return Some(public.clone());
        }
        let own = if self.tls { 443 } else { 80 };
        let place = Place::new(self.tls, name, port.unwrap_or(own));
        let at_our_port = port.unwrap_or(own) == self.port;
        let is_allowed = |allowed: &String| match split(allowed) {
            Some((_, Some(_))) => *allowed == host,
            Some((allowed, None)) => allowed == name && (at_our_port || (port.is_none() && !place.loopback)),
            None => false,
        };
        let known = (place.loopback && at_our_port) || self.allowed.iter().any(is_allowed);
        known.then_some(place)
    }
}

/// An IPv6 address as hosts have it, in brackets.
fn bracketed(host: &str) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() }
}

/// The name and, if it has one, the port of a host.
fn split(host: &str) -> Option<(&str, Option<u16>)> {
    let end_of_name = match host.strip_prefix('[') {
        Some(_) => host.find(']')? + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at(end_of_name);
    let port = match rest.strip_prefix(':') {
        Some(port) => Some(port.parse().ok()?),
        None if rest.is_empty() => None,
        None => return None,
    };
    (!name.is_empty()).then_some((name, port))
}

#[cfg(test)]
mod tests {
    use super::Site;
    use crate::config::ControlPlane;

    fn site(text: &str) -> Site {
        Site::new(&ControlPlane::parse("f", text, &|_| None).unwrap(), 7843)
    }

    #[track_caller]
    fn origins(site: &Site, hosts: &[(&str, Option<&str>)]) {
        for (host, origin) in hosts {
            assert_eq!(site.place(host).map(|place| place.origin()).as_deref(), *origin, "{host}");
        }
    }

    #[test]
    fn this_machines_names_go_with_our_port_alone() {
        let local = Some("http://localhost:7843");
        origins(
            &site(""),
            &[
                ("localhost:7843", local),
                ("LOCALHOST:7843", local),
                ("127.0.0.1:7843", Some("http://127.0.0.1:7843")),
                ("[::1]:7843", Some("http://[::1]:7843")),
                ("localhost", None),
                ("localhost:7844", None),
                ("localhost:7843:7843", None),
                ("::1", None),
                ("127.0.0.1.nip.io:7843", None),
                ("localhost.evil.example:7843", None),
                ("evil.example:7843", None),
                ("", None),
                (":7843", None),
                ("[::1", None),
            ],
        );
    }

    #[test]
    fn an_allowed_host_goes_with_its_port_or_ours() {
        origins(
            &site("allowed_hosts: [mcpg.internal, 'box.example:9000', '::2']"),
            &[
                ("mcpg.internal:7843", Some("http://mcpg.internal:7843")),
                ("mcpg.internal", Some("http://mcpg.internal")),
                ("mcpg.internal:1", None),
                ("box.example:9000", Some("http://box.example:9000")),
                ("box.example:7843", None),
                ("[::2]:7843", Some("http://[::2]:7843")),
                ("127.0.0.1:7843", Some("http://127.0.0.1:7843")),
            ],
        );
    }

    #[test]
    fn a_public_url_says_its_scheme() {
        let public = site("public_url: https://MCPG.example");
        let origin = Some("https://mcpg.example");
        origins(&public, &[("mcpg.example", origin), ("mcpg.example:443", origin), ("mcpg.example:7843", None)]);
        assert!(public.place("mcpg.example").unwrap().is_secure());
        assert!(!public.place("localhost:7843").unwrap().is_secure());
        let tls = site("tls: {cert_file: a, key_file: b}");
        assert!(tls.place("127.0.0.1:7843").unwrap().is_secure());
        assert_eq!(tls.place("127.0.0.1:7843").unwrap().port(), 7843);
    }
}
