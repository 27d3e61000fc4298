-- Which calls did each hour of event time (UTC) and series have? The partial hourly rollups of some samples.
-- `samples` has the columns of schemas/tool_invocations.sql; the answer has those of schemas/tool_usage_hourly.sql.
-- Durations are summed as multiples of 2^-16 ms, the longest as 2^38 s: sums of such are exact in a double up to 2^37 ms,
-- and so the same in whatever order and batches the samples came. Latency is of dispatched calls alone: a denied call ran nothing. Where no call was
-- dispatched, min_ms is the greatest double and max_ms 0, so that they merge by min and max, and latency is the histogram of nothing.
SELECT
    date_bin(INTERVAL '1 hour', started_at) AS window_start,
    org,
    workspace,
    plugin,
    tool,
    count(*) AS calls,
    count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout')) AS errors,
    count(*) FILTER (WHERE outcome IN ('policy_denied', 'quota_exceeded')) AS denials,
    coalesce(
        sum(floor(least(duration_ms, 274877906944000.0) * 65536.0 + 0.5) / 65536.0)
            FILTER (WHERE outcome NOT IN ('policy_denied', 'quota_exceeded')),
        0.0
    ) AS sum_ms,
    coalesce(min(duration_ms) FILTER (WHERE outcome NOT IN ('policy_denied', 'quota_exceeded')), 1.7976931348623157e308) AS min_ms,
    coalesce(max(duration_ms) FILTER (WHERE outcome NOT IN ('policy_denied', 'quota_exceeded')), 0.0) AS max_ms,
    coalesce(latency_hist(duration_ms) FILTER (WHERE outcome NOT IN ('policy_denied', 'quota_exceeded')), X'01060000') AS latency,
    CAST(date_bin(INTERVAL '1 hour', started_at) AS DATE) AS date
FROM samples
GROUP BY date_bin(INTERVAL '1 hour', started_at), org, workspace, plugin, tool
