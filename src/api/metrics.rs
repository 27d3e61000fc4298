//! `GET /v1/orgs/{org}/metrics`: the fleet's metrics, rolled up, for Prometheus.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::{Api, Problem};
use crate::model::{Role, micros};
use crate::rollup::Granularity;
use crate::rollup::exposition::{Format, render};

/// Renders the org's running totals; the cost depends on the number of series alone.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let started = Instant::now();
    let org = api.access.allow(&headers, &org, Role::Read)?;
    tracing::Span::current().record("org", org.as_str());
    let granularity = granularity(query.as_deref())?;
    let format = Format::negotiate(accept(&headers).as_deref());
    let now = micros(api.clock.now());
    let read = api.plane.with_totals(&org, |totals| (render(totals, granularity, now, format), totals.series_count()));
    let (body, series) = read.await?;
    api.metrics.scrape.seconds.observe(started.elapsed().as_secs_f64());
    api.metrics.scrape.bytes.inc_by(body.len() as u64);
    api.metrics.scrape.series.set(i64::try_from(series).unwrap_or(i64::MAX));
    Ok(([(CONTENT_TYPE, format.content_type()), (VARY, "accept")], body).into_response())
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

#[cfg(test)]
mod tests {
    use super::granularity;
    use crate::rollup::Granularity;

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
