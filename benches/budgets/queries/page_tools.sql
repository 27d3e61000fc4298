-- How does each tool fare, and how did it along the way?
SELECT plugin, tool, slot, calls, errors, denials, p50, p95, p99 FROM (
  SELECT plugin, tool, slot, calls, errors, denials, p50, p95, p99, dense_rank() OVER (ORDER BY score DESC NULLS LAST, plugin, tool) AS place FROM (
    SELECT plugin, tool, slot, calls, errors, denials, p50, p95, p99,
      max(CASE WHEN slot IS NULL THEN calls END) OVER (PARTITION BY plugin, tool) AS score FROM (
      SELECT plugin, tool, slot, calls, errors, denials,
        latency_quantile(latency, 0.5) AS p50, latency_quantile(latency, 0.95) AS p95, latency_quantile(latency, 0.99) AS p99
      FROM (
      SELECT plugin, tool, slot, count(*) AS calls,
        count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout')) AS errors,
        count(*) FILTER (WHERE outcome IN ('policy_denied', 'quota_exceeded')) AS denials,
        latency_hist(duration_ms) FILTER (WHERE outcome NOT IN ('policy_denied', 'quota_exceeded')) AS latency
      FROM (
        SELECT plugin, tool, outcome, duration_ms, CAST((CAST(started_at AS BIGINT) / 1000 - {from_ms}) / {slot_ms} AS BIGINT) AS slot
        FROM tool_invocations
        WHERE started_at >= '{from}' AND started_at < '{to}'
AND TRUE
      )
      GROUP BY GROUPING SETS ((plugin, tool), (plugin, tool, slot))
      )
    )
  )
) WHERE place <= 200
