-- Registered models. `versions` and `alias_events` count what was ever made: taking the next number by an update also
-- locks the model's row, so on every engine one writer per model decides at a time.
CREATE TABLE models (
  project      TEXT NOT NULL,
  name         TEXT NOT NULL,
  created_us   BIGINT NOT NULL,
  versions     BIGINT NOT NULL,
  alias_events BIGINT NOT NULL,
  PRIMARY KEY (project, name)
);

-- Immutable. `record` is the version as JSON, `digest` the BLAKE3 of project and record, checked at every read.
CREATE TABLE model_versions (
  project    TEXT NOT NULL,
  model      TEXT NOT NULL,
  version    BIGINT NOT NULL,
  package    TEXT NOT NULL,
  run        TEXT NOT NULL,       -- '' if none
  created_us BIGINT NOT NULL,
  record     TEXT NOT NULL,
  digest     TEXT NOT NULL,
  PRIMARY KEY (project, model, version)
);
CREATE UNIQUE INDEX model_versions_once ON model_versions (project, model, package, run);
CREATE INDEX model_versions_run ON model_versions (project, run);

-- What was said of a version later.
CREATE TABLE model_tags (
  project TEXT NOT NULL,
  model   TEXT NOT NULL,
  version BIGINT NOT NULL,
  key     TEXT NOT NULL,
  value   TEXT NOT NULL,
  PRIMARY KEY (project, model, version, key)
);

CREATE TABLE model_approvals (
  project TEXT NOT NULL,
  model   TEXT NOT NULL,
  version BIGINT NOT NULL,
  seq     BIGINT NOT NULL,
  record  TEXT NOT NULL,          -- JSON
  digest  TEXT NOT NULL,
  PRIMARY KEY (project, model, version, seq)
);

-- Aliases are events: what an alias means is its newest row, what it meant then is the newest row up to then.
CREATE TABLE model_alias_events (
  project TEXT NOT NULL,
  model   TEXT NOT NULL,
  seq     BIGINT NOT NULL,
  alias   TEXT NOT NULL,
  kind    TEXT NOT NULL,          -- set, rollback, removed
  at_us   BIGINT NOT NULL,
  record  TEXT NOT NULL,          -- the alias event as JSON
  digest  TEXT NOT NULL,
  PRIMARY KEY (project, model, seq)
);
CREATE INDEX model_alias_newest ON model_alias_events (project, model, alias, seq);
