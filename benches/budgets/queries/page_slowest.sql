-- Which calls are the slowest?
SELECT invocation_id, started_at, plugin, tool, caller, outcome, error_code, duration_ms, instance
FROM tool_invocations
WHERE started_at >= '{from}' AND started_at < '{to}'
AND TRUE
ORDER BY duration_ms DESC, invocation_id DESC
LIMIT 100
