-- What went wrong, grouped by what it is?
SELECT outcome, error_code, error_hash, count(*) AS calls, count(DISTINCT plugin || '/' || tool) AS tools, count(DISTINCT caller) AS callers,
  min(plugin || '/' || tool) AS one_tool, min(caller) AS one_caller, min(started_at) AS first_at, max(started_at) AS last_at
FROM tool_invocations
WHERE started_at >= '{from}' AND started_at < '{to}'
AND TRUE
AND started_at >= '{box_from}' AND started_at < '{box_to}' AND duration_ms > 1000 AND duration_ms <= 30000 AND outcome NOT IN ('policy_denied', 'quota_exceeded')
  AND outcome <> 'ok'
GROUP BY outcome, error_code, error_hash
ORDER BY calls DESC, outcome, error_code, error_hash
LIMIT 200
