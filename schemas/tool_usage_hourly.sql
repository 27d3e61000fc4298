-- Partial rollups, one row a flush, hour and series; merge them by sum, min, max and latency_merge.
-- SQL over HTTP serves them merged; another engine that reads the files merges them itself.
CREATE TABLE tool_usage_hourly (
    window_start TIMESTAMP NOT NULL, -- start of the UTC hour that started_at lies in
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
    date         DATE      NOT NULL  -- partition column: UTC date of window_start
);
