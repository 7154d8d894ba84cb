-- Runs and what they logged. Runs and keys have small numbers beside their ids: ten million rows of latest metrics name them.
CREATE TABLE tracking_counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL);

CREATE TABLE experiments (
  project    TEXT NOT NULL,
  name       TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  tags       TEXT NOT NULL,       -- JSON object
  PRIMARY KEY (project, name)
);

CREATE TABLE runs (
  id             TEXT PRIMARY KEY,
  project        TEXT NOT NULL,
  num            BIGINT NOT NULL UNIQUE,
  experiment     TEXT NOT NULL,
  name           TEXT NOT NULL,
  status         TEXT NOT NULL,   -- running, finished, failed, killed; 'crashed' is derived from alive_until_us
  started_us     BIGINT NOT NULL, -- client's clock
  ended_us       BIGINT,
  created_us     BIGINT NOT NULL, -- our clock, at arrival
  alive_until_us BIGINT,          -- wall clock; NULL: this run sends no heartbeats
  parent         TEXT,
  created_by     TEXT NOT NULL,
  code           TEXT,
  environment    TEXT,
  source         TEXT NOT NULL,   -- JSON: argv, seeds, hardware, what could not be captured
  batches        BIGINT NOT NULL,
  deleted_us     BIGINT
);
CREATE INDEX runs_started ON runs (project, started_us, num);
CREATE INDEX runs_experiment ON runs (project, experiment, started_us, num);
CREATE INDEX runs_parent ON runs (project, parent);

-- Names of metrics, params and tags. Looked up by digest, so a name may be as long as it likes on every engine.
CREATE TABLE tracking_keys (
  id      BIGINT PRIMARY KEY,
  project TEXT NOT NULL,
  digest  TEXT NOT NULL,
  name    TEXT NOT NULL,
  UNIQUE (project, digest)
);

CREATE TABLE run_batches (
  project TEXT NOT NULL,
  run     BIGINT NOT NULL,
  batch   TEXT NOT NULL,
  PRIMARY KEY (run, batch)
);

-- The whole history: one row per (batch, key), points packed and sorted by step (tracking/history.py).
CREATE TABLE run_points (
  project    TEXT NOT NULL,
  run        BIGINT NOT NULL,
  key        BIGINT NOT NULL,
  seq        BIGINT NOT NULL,
  first_step BIGINT NOT NULL,
  last_step  BIGINT NOT NULL,
  points     BIGINT NOT NULL,
  arrived_us BIGINT NOT NULL,
  data       BYTEA NOT NULL,
  PRIMARY KEY (run, key, seq)
);

-- The latest value of each metric, for listings and search; the history is run_points.
CREATE TABLE run_metrics (
  run     BIGINT NOT NULL,
  key     BIGINT NOT NULL,
  step    BIGINT NOT NULL,
  time_us BIGINT NOT NULL,
  value   DOUBLE PRECISION,       -- NULL for NaN
  special BIGINT,                 -- IEEE bits where the column alone would lose them
  project TEXT NOT NULL,
  PRIMARY KEY (run, key)
);
CREATE INDEX run_metrics_value ON run_metrics (key, value, run);

-- Only the head of a value (200 characters) is indexed: PostgreSQL's B-tree refuses rows over 2,704 bytes.
CREATE TABLE run_params (
  project TEXT NOT NULL,
  run     BIGINT NOT NULL,
  key     BIGINT NOT NULL,
  head    TEXT NOT NULL,
  value   TEXT NOT NULL,
  PRIMARY KEY (run, key)
);
CREATE INDEX run_params_value ON run_params (key, head, run);

CREATE TABLE run_tags (
  project TEXT NOT NULL,
  run     BIGINT NOT NULL,
  key     BIGINT NOT NULL,
  head    TEXT NOT NULL,
  value   TEXT NOT NULL,
  PRIMARY KEY (run, key)
);
CREATE INDEX run_tags_value ON run_tags (key, head, run);

CREATE TABLE run_artifacts (
  project TEXT NOT NULL,
  run     BIGINT NOT NULL,
  path    TEXT NOT NULL,
  digest  TEXT NOT NULL,
  size    BIGINT NOT NULL,
  at_us   BIGINT NOT NULL,
  PRIMARY KEY (run, path)
);
