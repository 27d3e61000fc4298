-- What do all samples add up to?
SELECT
    count(*) AS calls,
    count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout')) AS errors,
    sum(duration_ms) AS sum_ms,
    max(duration_ms) AS max_ms,
    sum(request_bytes) AS received_bytes,
    sum(response_bytes) AS sent_bytes
FROM tool_invocations
