-- What does tool_usage_daily hold, as a query sees it? One row a window and series: the partial rows in the files, and those of samples that
-- the files do not hold yet, merged. Where no call was dispatched, there is no least and no greatest duration.
-- `files` and `fresh` have the columns of schemas/tool_usage_daily.sql.
SELECT
    window_start,
    org,
    workspace,
    plugin,
    tool,
    sum(calls) AS calls,
    sum(errors) AS errors,
    sum(denials) AS denials,
    sum(sum_ms) AS sum_ms,
    nullif(min(min_ms), 1.7976931348623157e308) AS min_ms,
    CASE WHEN min(min_ms) < 1.7976931348623157e308 THEN max(max_ms) END AS max_ms,
    latency_merge(latency) AS latency
FROM (
    SELECT * FROM files
    UNION ALL
    SELECT * FROM fresh
)
GROUP BY window_start, org, workspace, plugin, tool
