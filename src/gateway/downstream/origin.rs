//! Protection against DNS rebinding: whose names a request may reach the gateway by, and whose pages may send it.
//!
//! A request with an `Origin` that is not allowed is refused, whatever else it brings. A `Host` is looked at where the
//! request brings no `Authorization`: a page that another name led here has no token.

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, uri::Authority};

/// Which hosts and origins are allowed.
#[derive(Debug)]
pub(super) struct Allowed {
    hosts: Vec<String>,
    origins: Vec<String>,
    /// Whether pages of this machine itself may come, from any port.
    local_pages: bool,
}

impl Allowed {
    pub(super) fn new(hosts: &[String], origins: &[String], local_pages: bool) -> Self {
        Self { hosts: hosts.to_vec(), origins: origins.to_vec(), local_pages }
    }

    /// Whether a request may be looked at.
    pub(super) fn allows(&self, parts: &Parts) -> bool {
        let origins = parts.headers.get_all(ORIGIN);
        if !origins.iter().all(|origin| origin.to_str().is_ok_and(|origin| self.is_origin(origin))) {
            return false;
        }
        parts.headers.contains_key(AUTHORIZATION) || self.is_host(host(&parts.headers, parts.uri.authority()))
    }

    fn is_host(&self, host: Option<&str>) -> bool {
        let Some(host) = host else { return false };
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
    }

    fn is_origin(&self, origin: &str) -> bool {
        if self.origins.iter().any(|allowed| allowed == origin) {
            return true;
        }
        let Some(rest) = origin.strip_prefix("http://").filter(|_| self.local_pages) else { return false };
        let is_port =
            |port: &str| port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        ["localhost", "127.0.0.1", "[::1]"].into_iter().any(|name| rest.strip_prefix(name).is_some_and(is_port))
    }
}

/// The name that a request reaches the gateway by; HTTP/2 has it in the request's own target.
fn host<'a>(headers: &'a HeaderMap, authority: Option<&'a Authority>) -> Option<&'a str> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None, _) => authority.map(Authority::as_str),
        (Some(_), Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::Allowed;

    fn allows(fields: &[(&str, &str)]) -> bool {
        let allowed = Allowed::new(
            &["localhost".to_owned(), "::1".to_owned(), "gw.example:8443".to_owned()],
            &["https://app.example".to_owned()],
            true,
        );
        let mut request = Request::post("/mcp");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        allowed.allows(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_name_that_is_not_allowed_is_refused_unless_there_is_a_token() {
        for host in ["localhost", "localhost:8080", "LOCALHOST:1", "[::1]:8080", "gw.example:8443"] {
            assert!(allows(&[("host", host)]), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "gw.example:1", ""] {
            assert!(!allows(&[("host", host)]), "{host}");
        }
        assert!(!allows(&[]) && !allows(&[("host", "localhost"), ("host", "localhost")]));
        assert!(allows(&[("host", "evil.example"), ("authorization", "Bearer x")]));
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        for origin in ["https://app.example", "http://localhost", "http://localhost:5173", "http://[::1]:1"] {
            assert!(allows(&[("host", "localhost"), ("origin", origin)]), "{origin}");
        }
        for origin in
            ["https://evil.example", "http://localhost.evil.example", "http://localhost:x", "null", "https://localhost"]
        {
            assert!(!allows(&[("host", "localhost"), ("origin", origin)]), "{origin}");
            assert!(!allows(&[("host", "localhost"), ("origin", origin), ("authorization", "Bearer x")]), "{origin}");
        }
    }
}
