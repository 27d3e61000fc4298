-- Which calls are the newest?
SELECT invocation_id, started_at, plugin, tool, caller, outcome, error_code, duration_ms, instance
FROM tool_invocations
WHERE started_at >= '{from}' AND started_at < '{to}'
AND TRUE
ORDER BY started_at DESC, invocation_id DESC
LIMIT 100
