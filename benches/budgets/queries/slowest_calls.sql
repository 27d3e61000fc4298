-- Which calls of a plugin took longest?
SELECT invocation_id, tool, caller, outcome, started_at, duration_ms
FROM tool_invocations
WHERE plugin = 'github'
ORDER BY duration_ms DESC, invocation_id
LIMIT 50
