-- Which calls did each day of event time (UTC) and series have? The partial daily rollups that some hourly ones add up to.
-- `hours` has the columns of schemas/tool_usage_hourly.sql; the answer has those of schemas/tool_usage_daily.sql.
-- Every part of a row is exact and the same in any order, see queries/rollup_hourly.sql: so the days are those of the samples themselves.
SELECT
    date_bin(INTERVAL '1 day', window_start) AS window_start,
    org,
    workspace,
    plugin,
    tool,
    sum(calls) AS calls,
    sum(errors) AS errors,
    sum(denials) AS denials,
    sum(sum_ms) AS sum_ms,
    min(min_ms) AS min_ms,
    max(max_ms) AS max_ms,
    latency_merge(latency) AS latency,
    CAST(date_bin(INTERVAL '1 day', window_start) AS DATE) AS date
FROM hours
GROUP BY date_bin(INTERVAL '1 day', window_start), org, workspace, plugin, tool
