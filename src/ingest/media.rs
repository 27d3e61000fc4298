//! `Content-Type`: which of the three forms a body has.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::error::IngestError;

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Media {
    /// `application/x-ndjson`: a JSON object a line. Also `application/ndjson` and `application/jsonl`.
    Ndjson,
    /// `application/json`: a JSON object, or an array of them.
    Json,
    /// `application/vnd.apache.arrow.stream`: an Arrow IPC stream.
    ArrowStream,
}

impl Media {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::Ndjson, Self::Json, Self::ArrowStream];

    /// The media type as it is registered or, for NDJSON, customary.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Json => "application/json",
            Self::ArrowStream => "application/vnd.apache.arrow.stream",
        }
    }

    /// The form that a request's `Content-Type` names (RFC 9110, section 8.3): letter case and parameters do not
    /// matter, except that a `charset` other than UTF-8 is refused.
    ///
    /// # Errors
    /// [`IngestError::UnsupportedMediaType`] when it is missing, given twice, or none of [`Media::ALL`].
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, IngestError> {
        let mut values = headers.get_all(CONTENT_TYPE).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(refuse("one Content-Type is needed"));
        };
        let value = value.to_str().map_err(|_| refuse("the Content-Type is not ASCII"))?;
        let mut parts = value.split(';');
        let essence = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let media = match essence.as_str() {
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Self::Ndjson,
            "application/json" => Self::Json,
            "application/vnd.apache.arrow.stream" => Self::ArrowStream,
            _ => return Err(refuse("this Content-Type is not known")),
        };
        for parameter in parts {
            if let Some((name, value)) = parameter.split_once('=')
                && name.trim().eq_ignore_ascii_case("charset")
                && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            {
                return Err(refuse("the charset must be utf-8"));
            }
        }
        Ok(media)
    }
}

fn refuse(reason: &str) -> IngestError {
    let [ndjson, json, arrow] = Media::ALL.map(Media::as_str);
    IngestError::UnsupportedMediaType(format!("{reason}; send {ndjson}, {json} or {arrow}"))
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_TYPE;
    use http::{HeaderMap, HeaderValue};

    use super::Media;

    fn media(value: &'static str) -> Option<Media> {
        Media::from_headers(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))])).ok()
    }

    #[test]
    fn each_form_is_known_by_its_names_in_any_case() {
        assert_eq!(media("application/x-ndjson"), Some(Media::Ndjson));
        assert_eq!(media("application/ndjson"), Some(Media::Ndjson));
        assert_eq!(media("application/jsonl"), Some(Media::Ndjson));
        assert_eq!(media("Application/JSON"), Some(Media::Json));
        assert_eq!(media("application/vnd.apache.arrow.stream"), Some(Media::ArrowStream));
    }

    #[test]
    fn parameters_are_allowed_but_only_utf_8_as_charset() {
        assert_eq!(media("application/json; charset=utf-8"), Some(Media::Json));
        assert_eq!(media("application/json;charset=\"UTF-8\"; profile=x"), Some(Media::Json));
        assert_eq!(media("application/json; charset=latin1"), None);
    }

    #[test]
    fn a_missing_or_foreign_type_is_refused_by_naming_the_three() {
        for headers in [
            HeaderMap::new(),
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/csv"))]),
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(""))]),
        ] {
            let error = Media::from_headers(&headers).unwrap_err();
            assert_eq!(error.status(), 415);
            for name in Media::ALL.map(Media::as_str) {
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }
}
