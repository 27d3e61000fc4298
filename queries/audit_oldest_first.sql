-- A page of the ledger, oldest entries first: GET /v1/orgs/{org}/audit.
-- $1 action, $2 prefix of the action, $3 actor, $4 workspace, $5 instance, $6 decision, $7 request_id, $8 and $9 occurred_at from
-- and before, each of which does not filter where it is null; $10 and $11 the numbers of entries from and before, so that segments of
-- others stay closed; $12 at most so many.
SELECT *
FROM audit_log
WHERE ($1 IS NULL OR action = $1)
  AND ($2 IS NULL OR starts_with(action, $2))
  AND ($3 IS NULL OR actor = $3)
  AND ($4 IS NULL OR workspace = $4)
  AND ($5 IS NULL OR instance = $5)
  AND ($6 IS NULL OR decision = $6)
  AND ($7 IS NULL OR request_id = $7)
  AND ($8 IS NULL OR occurred_at >= CAST($8 AS TIMESTAMP))
  AND ($9 IS NULL OR occurred_at < CAST($9 AS TIMESTAMP))
  AND seq >= $10
  AND seq < $11
ORDER BY seq ASC
LIMIT $12
