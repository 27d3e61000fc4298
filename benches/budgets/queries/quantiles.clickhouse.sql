-- quantiles.sql for ClickHouse: its t-digest, both quantiles out of one.
SELECT plugin, tool, calls, quantiles[1] AS p50_ms, quantiles[2] AS p99_ms
FROM (
    SELECT plugin, tool, count(*) AS calls, quantilesTDigest(0.5, 0.99)(duration_ms) AS quantiles
    FROM tool_invocations
    GROUP BY plugin, tool
)
ORDER BY plugin, tool
