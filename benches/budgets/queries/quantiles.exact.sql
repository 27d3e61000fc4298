-- quantiles.sql for DuckDB, exact: the least duration that at least that share of the calls do not exceed.
SELECT plugin, tool, count(*) AS calls, quantile_disc(duration_ms, 0.5) AS p50_ms, quantile_disc(duration_ms, 0.99) AS p99_ms
FROM tool_invocations
GROUP BY plugin, tool
ORDER BY plugin, tool
