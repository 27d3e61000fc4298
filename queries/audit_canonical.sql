-- Entries as they were hashed, oldest first: GET /v1/orgs/{org}/audit/canonical, and the entry of a proof.
-- $1 and $2 the numbers of entries from and before, so that segments of others stay closed.
SELECT *
FROM audit_log
WHERE seq >= $1
  AND seq < $2
ORDER BY seq ASC
