-- How often is each value in the box, and elsewhere?
SELECT facet, value, here, elsewhere FROM (
  SELECT facet, value, here, elsewhere, row_number() OVER (PARTITION BY facet ORDER BY here DESC, value) AS place FROM (
    SELECT CASE WHEN grouping(outcome) = 0 THEN 'outcome' WHEN grouping(plugin) = 0 THEN 'plugin' WHEN grouping(tool) = 0 THEN 'tool' WHEN grouping(caller) = 0 THEN 'caller' WHEN grouping(error_code) = 0 THEN 'code' WHEN grouping(instance) = 0 THEN 'instance' WHEN grouping(workspace) = 0 THEN 'workspace' WHEN grouping(decision) = 0 THEN 'decision' END AS facet, CASE WHEN grouping(outcome) = 0 THEN outcome WHEN grouping(plugin) = 0 THEN plugin WHEN grouping(tool) = 0 THEN tool WHEN grouping(caller) = 0 THEN caller WHEN grouping(error_code) = 0 THEN error_code WHEN grouping(instance) = 0 THEN instance WHEN grouping(workspace) = 0 THEN workspace WHEN grouping(decision) = 0 THEN decision END AS value,
      count(*) FILTER (WHERE boxed) AS here, count(*) FILTER (WHERE NOT boxed) AS elsewhere
    FROM (
      SELECT outcome, plugin, tool, caller, error_code, instance, workspace, decision, started_at >= '{box_from}' AND started_at < '{box_to}' AND duration_ms > 1000 AND duration_ms <= 30000 AND outcome NOT IN ('policy_denied', 'quota_exceeded') AS boxed
      FROM tool_invocations
      WHERE started_at >= '{from}' AND started_at < '{to}'
        AND TRUE
    )
    GROUP BY GROUPING SETS ((outcome), (plugin), (tool), (caller), (error_code), (instance), (workspace), (decision))
  )
) WHERE place <= 100
