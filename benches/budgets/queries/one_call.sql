-- What became of the one call whose id stands in a log?
SELECT invocation_id, workspace, instance, plugin, tool, started_at, duration_ms, outcome, caller, session_id, trace_id, span_id
FROM tool_invocations
WHERE invocation_id = '{id}'
