-- How fast is each tool, at the median and for the slowest one in a hundred?
SELECT
    plugin,
    tool,
    count(*) AS calls,
    latency_quantile(latency_hist(duration_ms), 0.5) AS p50_ms,
    latency_quantile(latency_hist(duration_ms), 0.99) AS p99_ms
FROM tool_invocations
GROUP BY plugin, tool
ORDER BY plugin, tool
