-- Which calls did each hour of event time (UTC) and series have? The partial hourly rollups of some samples.
-- `samples` has the columns of schemas/tool_invocations.sql; the answer has those of schemas/tool_usage_hourly.sql.
-- Durations are summed as multiples of 2^-16 ms, the longest as 2^38 s: sums of such are exact in a double up to 2^37 ms,
-- and so the same in whatever order and batches the samples came.
SELECT
    date_bin(INTERVAL '1 hour', started_at) AS window_start,
    org,
    workspace,
    plugin,
    tool,
    count(*) AS calls,
    count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout')) AS errors,
    count(*) FILTER (WHERE outcome IN ('policy_denied', 'quota_exceeded')) AS denials,
    sum(floor(least(duration_ms, 274877906944000.0) * 65536.0 + 0.5) / 65536.0) AS sum_ms,
    min(duration_ms) AS min_ms,
    max(duration_ms) AS max_ms,
    latency_hist(duration_ms) AS latency,
    CAST(date_bin(INTERVAL '1 hour', started_at) AS DATE) AS date
FROM samples
GROUP BY date_bin(INTERVAL '1 hour', started_at), org, workspace, plugin, tool
