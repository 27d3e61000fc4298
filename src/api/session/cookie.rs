//! The two cookies: their names, and how they are set and read.
//!
//! | cookie | over TLS | on loopback without | `SameSite` |
//! |---|---|---|---|
//! | the session | `__Host-mcpg` | `mcpg-<port>` | `Strict`: a page of another site never sends it |
//! | a login under way | `__Host-mcpg-login` | `mcpg-login-<port>` | `Lax`: the provider's redirect brings it back |
//!
//! Both are `HttpOnly` and of the whole path. `__Host-` is refused by some browsers over plain HTTP, so on loopback the
//! name has none of it and the cookie is not `Secure`: cookies know no ports, and other programs of the machine may be
//! sent it. Anywhere else without TLS no cookie is set.

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};

use crate::api::site::Place;

const SECURE: &str = "__Host-mcpg";
const PLAIN: &str = "mcpg-";

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cookie {
    Session,
    Login,
}

impl Cookie {
    /// Its name at a place; none where there is neither TLS nor loopback.
    pub(super) fn name(self, place: &Place) -> Option<String> {
        match (self, place.is_secure(), place.is_loopback()) {
            (Self::Session, true, _) => Some(SECURE.to_owned()),
            (Self::Login, true, _) => Some(format!("{SECURE}-login")),
            (Self::Session, false, true) => Some(format!("{PLAIN}{}", place.port())),
            (Self::Login, false, true) => Some(format!("{PLAIN}login-{}", place.port())),
            (_, false, false) => None,
        }
    }

    /// The header that sets it, for so many seconds, or until the browser ends.
    pub(super) fn set(self, place: &Place, value: &str, seconds: Option<u64>) -> Option<HeaderValue> {
        let same_site = match self {
            Self::Session => "Strict",
            Self::Login => "Lax",
        };
        let secure = if place.is_secure() { "; Secure" } else { "" };
        let age = seconds.map(|seconds| format!("; Max-Age={seconds}")).unwrap_or_default();
        let name = self.name(place)?;
        HeaderValue::try_from(format!("{name}={value}; Path=/; HttpOnly; SameSite={same_site}{secure}{age}")).ok()
    }

    /// The header that takes it away.
    pub(super) fn clear(self, place: &Place) -> Option<HeaderValue> {
        self.set(place, "", Some(0))
    }

    /// Its values in a request: there may be several, since a page of another port can set one.
    pub(super) fn values<'a>(self, place: &Place, headers: &'a HeaderMap) -> Vec<&'a str> {
        let Some(name) = self.name(place) else { return Vec::new() };
        pairs(headers).filter(|(found, _)| *found == name).map(|(_, value)| value).collect()
    }
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

/// Whether a request brings a cookie of this program's.
pub(in crate::api) fn has_cookie(headers: &HeaderMap) -> bool {
    pairs(headers).any(|(name, _)| name.starts_with(SECURE) || name.starts_with(PLAIN))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;

    use super::{Cookie, has_cookie};
    use crate::api::site::{Place, Site};
    use crate::config::ControlPlane;

    fn place(host: &str) -> Place {
        let text = "public_url: https://mcpg.example\nallowed_hosts: [box]";
        Site::new(&ControlPlane::parse("f", text, &|_| None).unwrap(), 7843).place(host).unwrap()
    }

    fn set(cookie: Cookie, host: &str) -> Option<String> {
        Some(cookie.set(&place(host), "v", Some(9))?.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_cookie_is_as_safe_as_its_place_allows() {
        assert_eq!(
            set(Cookie::Session, "mcpg.example").unwrap(),
            "__Host-mcpg=v; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=9"
        );
        assert_eq!(
            set(Cookie::Login, "mcpg.example").unwrap(),
            "__Host-mcpg-login=v; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=9"
        );
        assert_eq!(
            set(Cookie::Session, "127.0.0.1:7843").unwrap(),
            "mcpg-7843=v; Path=/; HttpOnly; SameSite=Strict; Max-Age=9"
        );
        assert_eq!(set(Cookie::Session, "box:7843"), None, "neither TLS nor loopback");
    }

    #[test]
    fn every_value_of_a_name_is_read_and_no_other() {
        let headers = HeaderMap::from_iter([(
            axum::http::header::COOKIE,
            "mcpg-1=other; mcpg-7843=one; mcpg-login-7843=login; mcpg-7843=two".parse().unwrap(),
        )]);
        assert_eq!(Cookie::Session.values(&place("localhost:7843"), &headers), ["one", "two"]);
        assert_eq!(Cookie::Login.values(&place("localhost:7843"), &headers), ["login"]);
        assert!(has_cookie(&headers) && !has_cookie(&HeaderMap::new()));
    }
}
