//! One canonical form of a resource's URI: what policy decides on.
//!
//! Two spellings of one resource must not be two subjects, or a policy that forbids the one would not hold for the
//! other. The canonical form is that of the WHATWG URL standard, with percent-encodings normalised as RFC 3986 says:
//! those of unreserved characters decoded, the hexadecimal digits of the others in capitals. What is no URL at all is
//! its own form.
//!
//! Nothing is rewritten on its way: a URI that is not canonical is refused, unless a plugin lists exactly these bytes
//! or a template of its stands for them, and then they are sent as they are.

use url::Url;

/// The longest URI that is looked at.
pub(crate) const MAX_URI: usize = 8 << 10;

/// The canonical form of a URI.
pub(crate) fn canonical(uri: &str) -> String {
    match Url::parse(uri) {
        Ok(url) => normalised(url.as_str()),
        Err(_) => uri.to_owned(),
    }
}

/// The URI with its percent-encodings normalised.
fn normalised(uri: &str) -> String {
    let mut out = String::with_capacity(uri.len());
    let mut rest = uri;
    while let Some(at) = rest.find('%') {
        let (before, encoded) = rest.split_at(at);
        out.push_str(before);
        let digits = encoded.get(1..3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(char::from(byte));
                rest = encoded.get(3..).unwrap_or_default();
            }
            Some(byte) => {
                out.push_str(&format!("%{byte:02X}"));
                rest = encoded.get(3..).unwrap_or_default();
            }
            None => {
                out.push('%');
                rest = encoded.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    out
}

/// Whether a template (RFC 6570) may stand for a URI: its literal parts in their order, and something in between.
pub(crate) fn matches(template: &str, uri: &str) -> bool {
    let (mut rest, mut pattern) = (uri, template);
    // Whether what comes next may be anything; and whether that may have a slash in it.
    let mut open: Option<bool> = None;
    loop {
        let (literal, expression) = match pattern.split_once('{') {
            Some((literal, after)) => match after.split_once('}') {
                Some((expression, after)) => {
                    pattern = after;
                    (literal, Some(expression))
                }
                // A brace that is never closed stands for itself.
                None => (pattern, None),
            },
            None => (pattern, None),
        };
        let found = match (open, expression) {
            (None, _) => rest.starts_with(literal).then_some(0),
            // The last literal part ends the URI.
            (Some(_), None) => rest.ends_with(literal).then(|| rest.len() - literal.len()),
            (Some(_), Some(_)) => rest.find(literal),
        };
        let Some(at) = found else { return false };
        let (value, after) = rest.split_at(at);
        if open == Some(false) && value.contains('/') {
            return false;
        }
        rest = after.get(literal.len()..).unwrap_or_default();
        match expression {
            None => return rest.is_empty(),
            Some(expression) => {
                let spans_slashes = expression.starts_with(['+', '/', '#', '?', '&']) || expression.ends_with('*');
                open = Some(spans_slashes || open == Some(true) && literal.is_empty());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{canonical, matches};

    #[test]
    fn two_spellings_of_one_resource_have_one_form() {
        for (one, other) in [
            ("HTTP://Host:80/a/../b", "http://host/b"),
            ("http://host", "http://host/"),
            ("file:///a/%7euser/./b", "file:///a/~user/b"),
            ("x://h/a%2fb", "x://h/a%2Fb"),
            ("note:///a/b/../c", "note:///a/c"),
        ] {
            assert_eq!(canonical(one), other);
            assert_eq!(canonical(other), other, "it is its own form");
        }
        for own in
            ["test://static-text", "demo://resource/static/document/a.md", "urn:isbn:0451450523", "plain words", ""]
        {
            assert_eq!(canonical(own), own);
        }
    }

    #[test]
    fn a_template_stands_for_what_it_expands_to() {
        for (template, uri) in [
            ("test://template/{id}/data", "test://template/123/data"),
            ("x://{a}/{b}", "x://1/2"),
            ("file:///{+path}", "file:///a/b/c"),
            ("plain", "plain"),
            ("{scheme}://x", "y://x"),
        ] {
            assert!(matches(template, uri), "{template} {uri}");
        }
        for (template, uri) in [
            ("test://template/{id}/data", "test://template/1/2/data"),
            ("test://template/{id}/data", "test://template/1/data/more"),
            ("x://{a}", "y://1"),
            ("plain", "plain2"),
            ("x://{a}/b", "x://1/c"),
        ] {
            assert!(!matches(template, uri), "{template} {uri}");
        }
    }
}
