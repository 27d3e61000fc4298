-- What does tool_usage_daily hold, as a query sees it? One row a window and series: the partial rows in the files, and those of samples that
-- the files do not hold yet, merged.
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
    min(min_ms) AS min_ms,
    max(max_ms) AS max_ms,
    latency_merge(latency) AS latency
FROM (
    SELECT * FROM files
    UNION ALL
    SELECT * FROM fresh
)
GROUP BY window_start, org, workspace, plugin, tool
