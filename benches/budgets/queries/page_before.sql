-- How did each tool fare in the window before?
SELECT plugin, tool, count(*) AS calls,
  count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout')) AS errors,
  latency_quantile(latency_hist(duration_ms) FILTER (WHERE outcome NOT IN ('policy_denied', 'quota_exceeded')), 0.95) AS p95
FROM tool_invocations
WHERE started_at >= '{before}' AND started_at < '{from}'
AND TRUE
GROUP BY plugin, tool
