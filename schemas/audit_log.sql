-- The audit ledger's entries, one a row: segments of the ledger on the store, and `audit_log` in SQL. How an entry is hashed,
-- and what may never change, is in ledger.md.
CREATE TABLE audit_log (
    seq           BIGINT    NOT NULL,  -- 0, 1, 2 … without gaps, an org
    event_id      VARCHAR   NOT NULL,  -- UUID; minted (v7) where the emitter gave none
    occurred_at   TIMESTAMP NOT NULL,  -- the emitter's clock; recorded_at where it gave none
    recorded_at   TIMESTAMP NOT NULL,  -- the control plane's clock
    actor         VARCHAR   NOT NULL,  -- user:alice@acme, service:ci, system:gateway
    action        VARCHAR   NOT NULL,  -- dotted: tool.permit, plugin.started, operator.…, ledger.…
    target        VARCHAR,             -- what it was done to: github/list_repos
    decision      VARCHAR,             -- permit, deny, permit_with_obligations
    policy_ids    VARCHAR[],           -- the policies that decided
    obligations   VARCHAR[],           -- what the permit was bound to
    reason        VARCHAR,             -- why, in words
    workspace     VARCHAR,
    instance      VARCHAR,             -- the gateway
    request_id    VARCHAR,
    trace_id      VARCHAR,             -- 32 hex
    span_id       VARCHAR,             -- 16 hex
    invocation_id VARCHAR,             -- the sample of the same call
    emitter_seq   BIGINT,              -- the emitter's own counter: a hole in it is an omission before the ledger
    detail        VARCHAR,             -- JSON text of an object
    salt          VARCHAR   NOT NULL,  -- 32 hex, random: a removed entry cannot be guessed from its hash
    prev_hash     VARCHAR   NOT NULL,  -- 64 hex: entry_hash of the entry before
    entry_hash    VARCHAR   NOT NULL   -- 64 hex: SHA-256 of the entry's canonical bytes
);
