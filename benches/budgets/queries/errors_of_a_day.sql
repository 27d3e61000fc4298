-- What failed on one day, where, and how often?
SELECT plugin, tool, outcome, error_code, count(*) AS calls
FROM tool_invocations
WHERE date = DATE '{day}' AND outcome IN ('client_error', 'server_error', 'timeout')
GROUP BY plugin, tool, outcome, error_code
ORDER BY calls DESC, plugin, tool, outcome, error_code
