-- Partial daily rollups of some samples: one row a day of event time (UTC) and series.
-- `samples` holds rows of schemas/tool_invocations.sql; the answer has the columns of schemas/tool_usage_daily.sql.
-- Durations are summed as whole multiples of 2^-16 ms, and none as more than 2^40 s: such sums are exact in a double up to
-- 2^37 ms, so they come out the same in whatever order and batching the samples came.
SELECT
    date_trunc('day', started_at) AS window_start,
    org,
    workspace,
    plugin,
    tool,
    count(*) AS calls,
    count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout')) AS errors,
    count(*) FILTER (WHERE outcome IN ('policy_denied', 'quota_exceeded')) AS denials,
    sum(round(least(duration_ms, 1099511627776000.0) * 65536.0) / 65536.0) AS sum_ms,
    min(duration_ms) AS min_ms,
    max(duration_ms) AS max_ms,
    latency_hist(duration_ms) AS latency,
    CAST(date_trunc('day', started_at) AS DATE) AS date
FROM samples
GROUP BY date_trunc('day', started_at), org, workspace, plugin, tool
