-- Which tools fail most often, in all the history?
SELECT
    plugin,
    tool,
    sum(calls) AS calls,
    CAST(sum(errors) AS DOUBLE) / sum(calls) AS error_rate,
    latency_quantile(latency_merge(latency), 0.99) AS p99_ms
FROM tool_usage_daily
GROUP BY plugin, tool
ORDER BY error_rate DESC, plugin, tool
LIMIT 10
