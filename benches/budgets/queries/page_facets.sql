-- Which values has each facet, and how many calls?
SELECT facet, value, calls FROM (
  SELECT facet, value, calls, row_number() OVER (PARTITION BY facet ORDER BY calls DESC, value) AS place FROM (
    SELECT CASE WHEN grouping(outcome) = 0 THEN 'outcome' WHEN grouping(plugin) = 0 THEN 'plugin' WHEN grouping(tool) = 0 THEN 'tool' WHEN grouping(caller) = 0 THEN 'caller' WHEN grouping(error_code) = 0 THEN 'code' WHEN grouping(instance) = 0 THEN 'instance' WHEN grouping(workspace) = 0 THEN 'workspace' WHEN grouping(decision) = 0 THEN 'decision' END AS facet, CASE WHEN grouping(outcome) = 0 THEN outcome WHEN grouping(plugin) = 0 THEN plugin WHEN grouping(tool) = 0 THEN tool WHEN grouping(caller) = 0 THEN caller WHEN grouping(error_code) = 0 THEN error_code WHEN grouping(instance) = 0 THEN instance WHEN grouping(workspace) = 0 THEN workspace WHEN grouping(decision) = 0 THEN decision END AS value, count(*) FILTER (WHERE TRUE) AS calls
    FROM tool_invocations
    WHERE started_at >= '{from}' AND started_at < '{to}'
    GROUP BY GROUPING SETS ((outcome), (plugin), (tool), (caller), (error_code), (instance), (workspace), (decision))
  ) WHERE calls > 0
) WHERE place <= 50
ORDER BY facet, place
