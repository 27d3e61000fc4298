-- How did one tool fare, hour by hour, in all the history?
SELECT
    window_start,
    sum(calls) AS calls,
    sum(errors) AS errors,
    latency_quantile(latency_merge(latency), 0.95) AS p95_ms
FROM tool_usage_hourly
WHERE plugin = 'github' AND tool = 'search_code'
GROUP BY window_start
ORDER BY window_start
