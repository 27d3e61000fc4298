-- Partial rollups, one row a flush, day and series; merge them by sum, min, max and latency_merge.
-- SQL over HTTP serves them merged; another engine that reads the files merges them itself.
-- The Delta table is partitioned by a further column, month: the first day of the month that date lies in. Tables that were made before go
-- on being partitioned by date.
CREATE TABLE tool_usage_daily (
    window_start TIMESTAMP NOT NULL, -- start of the UTC day that started_at lies in
    org          VARCHAR   NOT NULL,
    workspace    VARCHAR   NOT NULL,
    plugin       VARCHAR   NOT NULL,
    tool         VARCHAR   NOT NULL,
    calls        BIGINT    NOT NULL, -- every sample
    errors       BIGINT    NOT NULL, -- client_error, server_error, timeout
    denials      BIGINT    NOT NULL, -- policy_denied, quota_exceeded
    sum_ms       DOUBLE    NOT NULL, -- this and the next three: of dispatched calls, since a denied one ran nothing
    min_ms       DOUBLE    NOT NULL, -- the greatest double where none was dispatched
    max_ms       DOUBLE    NOT NULL,
    latency      BINARY    NOT NULL, -- mergeable histogram, see src/rollup/histogram
    date         DATE      NOT NULL  -- UTC date of window_start
);
