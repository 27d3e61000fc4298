//! `GET /v1/orgs/{org}/metrics`: the fleet's metrics, rolled up, for Prometheus.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::scrapes::{Rendered, Wanted, rendered};
use super::who::Who;
use super::{Api, Problem};
use crate::model::Role;
use crate::query::formats::Coding;
use crate::rollup::Granularity;
use crate::rollup::exposition::{Format, Shown};

/// Renders the org's running totals; the cost depends on the number of series alone.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    RawQuery(query): RawQuery,
    who: Who,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let started = Instant::now();
    let org = api.allow(&who, &org, Role::Read).await?;
    let wanted = Wanted {
        org,
        granularity: granularity(query.as_deref())?,
        format: Format::negotiate(accept(&headers).as_deref()),
        shown: shown(query.as_deref())?,
        coding: Coding::negotiate(accept_encoding(&headers).as_deref()),
    };
    let (format, coding) = (wanted.format, wanted.coding);
    let Rendered { body, series } = rendered(&api, wanted).await?;
    api.metrics.scrape.seconds.observe(started.elapsed().as_secs_f64());
    api.metrics.scrape.bytes.inc_by(body.len() as u64);
    api.metrics.scrape.series.set(i64::try_from(series).unwrap_or(i64::MAX));
    let mut response =
        ([(CONTENT_TYPE, format.content_type()), (VARY, "accept, accept-encoding")], body).into_response();
    if let Some(coding) = coding {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    Ok(response)
}

/// What the query's `histogram` and `created` leave out; all is shown when it has neither.
fn shown(query: Option<&str>) -> Result<Shown, Problem> {
    let is_on = |wanted: &str, detail: &str| {
        let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        match pairs.find(|(name, _)| name == wanted).map(|(_, value)| value).as_deref() {
            None | Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(_) => Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail)),
        }
    };
    Ok(Shown {
        histogram: is_on("histogram", "histogram is on, or off to leave mcpg_tool_duration_seconds out")?,
        created: is_on("created", "created is on, or off to leave when series began out of OpenMetrics")?,
    })
}

/// The `granularity` of the query; `hour` when it has none. Other parameters are passed over, as scrapers may add their
/// own.
fn granularity(query: Option<&str>) -> Result<Granularity, Problem> {
    let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_granularity", detail);
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut given = pairs.filter(|(name, _)| name == "granularity").map(|(_, value)| value);
    let Some(word) = given.next() else { return Ok(Granularity::Hour) };
    if given.next().is_some() {
        return Err(invalid("granularity is given twice".to_owned()));
    }
    word.parse().map_err(|error| invalid(format!("{error}")))
}

/// All `Accept` headers as one list.
pub(super) fn accept(headers: &HeaderMap) -> Option<String> {
    let values: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// All `Accept-Encoding` headers as one list.
pub(super) fn accept_encoding(headers: &HeaderMap) -> Option<String> {
    let values: Vec<&str> = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{granularity, shown};
    use crate::rollup::Granularity;
    use crate::rollup::exposition::Shown;

    #[test]
    fn all_is_shown_but_what_is_switched_off() {
        assert_eq!(shown(None).unwrap(), Shown::ALL);
        assert_eq!(shown(Some("histogram=off&created=on")).unwrap(), Shown { histogram: false, created: true });
        assert_eq!(shown(Some("created=off")).unwrap(), Shown { histogram: true, created: false });
        for bad in ["histogram=", "created=no"] {
            assert_eq!(shown(Some(bad)).unwrap_err().code(), "invalid_parameter", "{bad}");
        }
    }

    #[test]
    fn granularity_is_hour_unless_it_says_day() {
        assert_eq!(granularity(None).unwrap(), Granularity::Hour);
        assert_eq!(granularity(Some("x=1")).unwrap(), Granularity::Hour);
        assert_eq!(granularity(Some("granularity=day&x=1")).unwrap(), Granularity::Day);
    }

    #[test]
    fn any_other_granularity_is_refused() {
        for bad in ["granularity=", "granularity=week", "granularity=HOUR", "granularity=hour&granularity=day"] {
            assert_eq!(granularity(Some(bad)).unwrap_err().code(), "invalid_granularity", "{bad}");
        }
    }
}
