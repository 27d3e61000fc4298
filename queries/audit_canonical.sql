-- Entries as they were hashed, oldest first: GET /v1/orgs/{org}/audit/canonical, and the entry of a proof.
-- $1 the first entry, $2 at most so many.
SELECT *
FROM audit_log
WHERE seq >= $1
ORDER BY seq ASC
LIMIT $2
