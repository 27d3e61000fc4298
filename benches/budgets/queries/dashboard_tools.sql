-- How did every tool fare in the last day?
SELECT
    plugin,
    tool,
    sum(calls) AS calls,
    sum(errors) AS errors,
    latency_quantile(latency_merge(latency), 0.5) AS p50_ms,
    latency_quantile(latency_merge(latency), 0.99) AS p99_ms
FROM tool_usage_hourly
WHERE window_start >= TIMESTAMP '{since}'
GROUP BY plugin, tool
ORDER BY calls DESC, plugin, tool
