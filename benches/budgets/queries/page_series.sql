-- How many calls, how slow, how late, at each step: the strip, the lines and the heat map, in one scan.
SELECT t, calls, ok, client_error, server_error, timeout, policy_denied, quota_exceeded,
  latency_quantile(latency, 0.5) AS p50, latency_quantile(latency, 0.95) AS p95, latency_quantile(latency, 0.99) AS p99,
  latency_quantile(lag, 0.99) AS lag, CASE WHEN t IS NOT NULL THEN latency_buckets(latency, 4) END AS buckets
FROM (
  SELECT t, count(*) AS calls,
    count(*) FILTER (WHERE outcome = 'ok') AS ok,
    count(*) FILTER (WHERE outcome = 'client_error') AS client_error,
    count(*) FILTER (WHERE outcome = 'server_error') AS server_error,
    count(*) FILTER (WHERE outcome = 'timeout') AS timeout,
    count(*) FILTER (WHERE outcome = 'policy_denied') AS policy_denied,
    count(*) FILTER (WHERE outcome = 'quota_exceeded') AS quota_exceeded,
    latency_hist(duration_ms) FILTER (WHERE outcome NOT IN ('policy_denied', 'quota_exceeded')) AS latency,
    latency_hist(lag_ms) AS lag
  FROM (
    SELECT date_bin(INTERVAL '{step} seconds', started_at) AS t, outcome, duration_ms,
      greatest((CAST(ingested_at AS BIGINT) - CAST(arrived_at AS BIGINT)) / 1000.0 - duration_ms, 0.0) AS lag_ms
    FROM tool_invocations
    WHERE started_at >= '{from}' AND started_at < '{to}'
      AND TRUE
  )
  GROUP BY GROUPING SETS ((t), ())
)
ORDER BY t
