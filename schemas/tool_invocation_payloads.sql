-- Sealed payloads: a row for each direction of a call that a policy captured. The format of envelope and record: schemas/payload.md.
-- In SQL there is neither of the two, nor any length: what a payload's size says is the payload's.
CREATE TABLE tool_invocation_payloads (
    org            VARCHAR NOT NULL,
    invocation_id  VARCHAR NOT NULL,    -- the call's, as in tool_invocations
    direction      VARCHAR NOT NULL,    -- request, response
    workspace      VARCHAR NOT NULL,
    instance       VARCHAR NOT NULL,
    plugin         VARCHAR NOT NULL,
    kind           VARCHAR NOT NULL,    -- tool, resource, prompt, task
    tool           VARCHAR NOT NULL,
    started_at     TIMESTAMP NOT NULL,
    ingested_at    TIMESTAMP NOT NULL,
    epoch          VARCHAR NOT NULL,    -- <date>.<days>d: whose key opens it, and until when there is one
    content_type   VARCHAR NOT NULL,
    truncated      BOOLEAN NOT NULL,    -- only the beginning was kept
    redactions     VARCHAR[],           -- what was taken out before sealing, as JSON pointers
    record_hash    VARCHAR NOT NULL,    -- SHA-256 of the record, 64 hex: what the ledger calls it by
    ledger_seq     BIGINT NOT NULL,     -- the entry payload.captured
    envelope       BINARY NOT NULL,
    record         BINARY NOT NULL,
    date           DATE NOT NULL        -- UTC date of started_at; the partition
);
