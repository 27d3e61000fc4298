//! The token of a request: `Authorization: Bearer <token>` (RFC 6750).

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// The longest token that is looked at. A longer one would not fit into most servers' headers either.
const MAX_TOKEN: usize = 16 << 10;

/// What stands in the `Authorization` header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presented<'a> {
    /// There is none.
    Nothing,
    /// A bearer token.
    Token(&'a str),
    /// Something else, and why it is no good.
    Unusable(&'static str),
}

/// The token of the one `Authorization` header; its scheme is not case-sensitive.
pub fn presented(headers: &HeaderMap) -> Presented<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Presented::Nothing,
        (Some(_), Some(_)) => return Presented::Unusable("send one Authorization header"),
        (Some(value), None) => value,
    };
    let unusable = Presented::Unusable("the Authorization header is not of the form: Bearer <token>");
    let Some((scheme, token)) = value.to_str().ok().and_then(|text| text.split_once(' ')) else { return unusable };
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        unusable
    } else if token.len() > MAX_TOKEN {
        Presented::Unusable("the token is too long")
    } else {
        Presented::Token(token)
    }
}
