-- How did one tool fare, hour by hour?
SELECT
    date_trunc('hour', started_at) AS window_start,
    count(*) AS calls,
    count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout')) AS errors,
    avg(duration_ms) AS mean_ms
FROM tool_invocations
WHERE plugin = 'github' AND tool = 'search_code'
GROUP BY date_trunc('hour', started_at)
ORDER BY date_trunc('hour', started_at)
