-- Version 1. Portable DDL: TEXT, BIGINT, DOUBLE PRECISION, BYTEA. Times are BIGINT microseconds since the epoch, UTC.
CREATE TABLE schema_version (version BIGINT PRIMARY KEY);

-- The one event log: what was decided, by whom, chained so that a change of any row shows (lineage/ledger.py).
CREATE TABLE events (
  project   TEXT NOT NULL,
  seq       BIGINT NOT NULL,
  id        TEXT NOT NULL UNIQUE,
  at_us     BIGINT NOT NULL,      -- policy clock
  wall_us   BIGINT NOT NULL,      -- machine clock
  kind      TEXT NOT NULL,        -- e.g. model.alias_set
  subject   TEXT NOT NULL,        -- a reference, e.g. model:delay
  actor     TEXT NOT NULL,
  operation TEXT NOT NULL,
  data      TEXT NOT NULL,        -- JSON
  prev      TEXT NOT NULL,
  hash      TEXT NOT NULL,
  PRIMARY KEY (project, seq)
);
CREATE INDEX events_subject ON events (project, subject, seq);
CREATE INDEX events_kind ON events (project, kind, seq);

CREATE TABLE chain_heads (project TEXT PRIMARY KEY, seq BIGINT NOT NULL, hash TEXT NOT NULL);

-- Cause and effect between things: source led to target.
CREATE TABLE edges (
  project TEXT NOT NULL,
  source  TEXT NOT NULL,
  target  TEXT NOT NULL,
  kind    TEXT NOT NULL,
  at_us   BIGINT NOT NULL,
  PRIMARY KEY (project, source, target, kind)
);
CREATE INDEX edges_target ON edges (project, target);

CREATE TABLE idempotency (
  project   TEXT NOT NULL,
  key       TEXT NOT NULL,
  operation TEXT NOT NULL,
  arguments TEXT NOT NULL,        -- digest of the arguments
  result    TEXT NOT NULL,        -- JSON
  at_us     BIGINT NOT NULL,
  PRIMARY KEY (project, key)
);

-- Which objects are reachable, and from what: the roots of gc.
CREATE TABLE object_refs (
  digest TEXT NOT NULL,
  owner  TEXT NOT NULL,
  project TEXT NOT NULL,
  PRIMARY KEY (digest, project, owner)
);
CREATE INDEX object_refs_owner ON object_refs (project, owner);

-- Leases carry a fencing token that only grows; a commit under a lease checks it (storage/leases.py).
CREATE TABLE leases (
  name       TEXT PRIMARY KEY,
  holder     TEXT NOT NULL,
  token      BIGINT NOT NULL,
  expires_us BIGINT NOT NULL
);

-- Small facts about the workspace itself, e.g. the manual policy clock.
CREATE TABLE settings (project TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (project, name));
