-- One row a tool call, as its gateway saw it: the sample that every metric, rollup and drill-down is made of.
-- The single source of the column list: the Arrow schema, the Delta table and the decoders are all read from here.
CREATE TABLE tool_invocations (
    invocation_id  VARCHAR   NOT NULL, -- UUID, version 7 when minted here
    org            VARCHAR   NOT NULL, -- from the request's path
    workspace      VARCHAR   NOT NULL,
    instance       VARCHAR   NOT NULL, -- the gateway that made the call
    plugin         VARCHAR   NOT NULL,
    tool           VARCHAR   NOT NULL,
    started_at     TIMESTAMP NOT NULL, -- event time, µs, UTC: windows are cut by it
    arrived_at     TIMESTAMP NOT NULL, -- when the gateway read the request
    ingested_at    TIMESTAMP NOT NULL, -- stamped by the control plane
    duration_ms    DOUBLE    NOT NULL,
    outcome        VARCHAR   NOT NULL, -- ok, client_error, server_error, timeout, policy_denied, quota_exceeded
    error_code     VARCHAR,
    error_hash     VARCHAR,            -- 64 hex, BLAKE3 of the error message; the message itself is never stored
    request_id     VARCHAR,
    session_id     VARCHAR,
    trace_id       VARCHAR,            -- 32 hex
    span_id        VARCHAR,            -- 16 hex
    caller         VARCHAR,
    decision       VARCHAR,            -- permit, deny, permit_with_obligations
    request_bytes  BIGINT,
    response_bytes BIGINT,
    client_name    VARCHAR,            -- what the client calls itself: self-reported, as are the next two
    client_version VARCHAR,
    protocol_version VARCHAR,          -- the version of MCP that the client speaks
    identity_us    BIGINT,             -- where the time between arrival and dispatch went: who calls,
    policy_us      BIGINT,             -- what is decided,
    queue_us       BIGINT,             -- waiting for a turn
    date           DATE      NOT NULL  -- partition column: UTC date of started_at
);
