-- How many callers and sessions does each plugin have?
SELECT plugin, count(DISTINCT caller) AS callers, count(DISTINCT session_id) AS sessions
FROM tool_invocations
GROUP BY plugin
ORDER BY plugin
