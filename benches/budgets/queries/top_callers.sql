-- Who calls most, how much do they get back, and how long do they wait in all?
SELECT caller, count(*) AS calls, sum(response_bytes) AS bytes, sum(duration_ms) AS waited_ms
FROM tool_invocations
GROUP BY caller
ORDER BY calls DESC, caller
LIMIT 10
