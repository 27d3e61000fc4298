//! Which format an `Accept` header asks for (RFC 9110, 12.5.1).
//!
//! Each format is as welcome as the most specific media range that covers it says by its `q`; the most welcome wins,
//! among equals the one whose range is named first, and among those of one range (`*/*`) text. When none is welcome the
//! answer is text all the same: a client that asks for the impossible is better served by text than by an error.

use super::Format;

impl Format {
    /// The format that an `Accept` header asks for.
    pub fn negotiate(accept: Option<&str>) -> Self {
        let ranges: Vec<Range<'_>> = accept.unwrap_or_default().split(',').filter_map(Range::parse).collect();
        let mut best = (Self::Text004, 0.0, usize::MAX);
        for format in [Self::Text004, Self::OpenMetrics, Self::Protobuf] {
            let covering = ranges.iter().enumerate().filter_map(|(place, range)| {
                let specificity = range.covers(format)?;
                Some((specificity, range.q, place))
            });
            // Of equally specific ranges the first counts: `max_by` would take the last.
            let chosen = covering.reduce(|best, next| if next.0 > best.0 { next } else { best });
            if let Some((_, q, place)) = chosen
                && (q > best.1 || (q == best.1 && q > 0.0 && place < best.2))
            {
                best = (format, q, place);
            }
        }
        best.0
    }
}

/// One media range of an `Accept` header.
struct Range<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    /// 0 to 1.
    q: f64,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().filter(|media| media.contains('/'))?;
        let mut range = Self { media, parameters: Vec::new(), q: 1.0 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if name.eq_ignore_ascii_case("q") {
                range.q = value.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
            } else {
                range.parameters.push((name, value));
            }
        }
        Some(range)
    }

    /// How specific the range is about the format, when it covers it.
    fn covers(&self, format: Format) -> Option<u8> {
        let (kind, media, wanted): (_, _, &[(&str, &str)]) = match format {
            Format::Text004 => ("text/*", "text/plain", &[("version", "0.0.4")]),
            Format::OpenMetrics => ("application/*", "application/openmetrics-text", &[("version", "1.0.0")]),
            Format::Protobuf => (
                "application/*",
                "application/vnd.google.protobuf",
                &[("proto", "io.prometheus.client.MetricFamily"), ("encoding", "delimited")],
            ),
        };
        if self.media == "*/*" {
            return Some(0);
        }
        if self.media.eq_ignore_ascii_case(kind) {
            return Some(1);
        }
        // Parameters that are no part of a format's identity, such as `escaping` and `charset`, are passed over.
        let differs = |(name, value): &(&str, &str)| {
            wanted.iter().any(|(wanted, own)| name.eq_ignore_ascii_case(wanted) && !value.eq_ignore_ascii_case(own))
        };
        let covered = self.media.eq_ignore_ascii_case(media) && !self.parameters.iter().any(differs);
        covered.then(|| 2 + self.parameters.len().min(9) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::Format::{self, OpenMetrics, Protobuf, Text004};

    #[test]
    fn each_client_gets_what_it_asks_for() {
        for (accept, expected) in [
            // Prometheus 2.42, by default and with native histograms enabled.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Protobuf,
            ),
            // Prometheus 3.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            // VictoriaMetrics, curl, a browser.
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Text004),
            ("*/*", Text004),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Text004),
        ] {
            assert_eq!(Format::negotiate(Some(accept)), expected, "{accept}");
        }
    }

    #[test]
    fn without_a_header_or_with_a_strange_one_the_answer_is_text() {
        assert_eq!(Format::negotiate(None), Text004);
        for accept in ["", ",;q=", "text/html", "application/openmetrics-text;q=2", "nonsense", "*/*;q=0"] {
            assert_eq!(Format::negotiate(Some(accept)), Text004, "{accept}");
        }
    }

    #[test]
    fn other_versions_and_encodings_are_not_ours() {
        for accept in [
            "application/openmetrics-text;version=2.0.0",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
            "application/vnd.google.protobuf;proto=another.Message;encoding=delimited",
        ] {
            assert_eq!(Format::negotiate(Some(accept)), Text004, "{accept}");
        }
    }

    #[test]
    fn the_highest_q_wins_and_among_equals_the_first() {
        for (accept, expected) in [
            ("text/plain;q=0.2, application/openmetrics-text;q=0.3", OpenMetrics),
            ("application/openmetrics-text, text/plain", OpenMetrics),
            ("text/plain, application/openmetrics-text", Text004),
            ("APPLICATION/OpenMetrics-Text; Version=\"1.0.0\"; Q=0.9, text/plain; q=0.8", OpenMetrics),
            ("text/plain;q=0, application/*", OpenMetrics),
        ] {
            assert_eq!(Format::negotiate(Some(accept)), expected, "{accept}");
        }
    }
}
