-- Slim rows of the prediction log: one per answered row (a failed request has one row, status <> 'ok').
CREATE TABLE predictions (
  project    TEXT NOT NULL,
  request    TEXT NOT NULL,            -- prediction id; a row is "request/row"
  row_no     BIGINT NOT NULL,
  deployment TEXT NOT NULL,
  model      TEXT NOT NULL,
  version    BIGINT NOT NULL,
  role       TEXT NOT NULL,
  event_us   BIGINT NOT NULL,          -- as the request said
  at_us      BIGINT NOT NULL,          -- event time as used by windows: never later than the policy clock
  arrival_us BIGINT NOT NULL,          -- machine clock of the inference server
  latency_us BIGINT NOT NULL,
  routes     BIGINT NOT NULL,          -- number of the route table in force
  status     TEXT NOT NULL,
  score      DOUBLE PRECISION,         -- binary: P(positive); regression: the number; NULL if not finite
  scores     TEXT,                     -- multiclass: JSON list of probabilities
  PRIMARY KEY (project, request, row_no)
);
CREATE INDEX predictions_time ON predictions (project, deployment, at_us);
CREATE INDEX predictions_version ON predictions (project, model, version, at_us);

-- What shadows said to the same rows.
CREATE TABLE shadow_predictions (
  project    TEXT NOT NULL,
  request    TEXT NOT NULL,
  row_no     BIGINT NOT NULL,
  name       TEXT NOT NULL,
  deployment TEXT NOT NULL,
  model      TEXT NOT NULL,
  version    BIGINT NOT NULL,
  at_us      BIGINT NOT NULL,
  latency_us BIGINT NOT NULL,
  status     TEXT NOT NULL,
  score      DOUBLE PRECISION,
  scores     TEXT,
  PRIMARY KEY (project, request, row_no, name)
);
CREATE INDEX shadow_predictions_time ON shadow_predictions (project, deployment, at_us);

-- The position of ingestion. counters: JSON of what was dropped and why. Same transaction as the rows: exactly once.
CREATE TABLE log_cursors (
  project  TEXT NOT NULL,
  name     TEXT NOT NULL,
  cursor   TEXT NOT NULL,
  counters TEXT NOT NULL,
  PRIMARY KEY (project, name)
);

-- Finished log segments, kept whole as objects: a prediction's inputs are read from here.
CREATE TABLE log_segments (
  project TEXT NOT NULL,
  name    TEXT NOT NULL,
  digest  TEXT NOT NULL,
  min_id  TEXT NOT NULL,
  max_id  TEXT NOT NULL,
  records BIGINT NOT NULL,
  PRIMARY KEY (project, name)
);
CREATE INDEX log_segments_ids ON log_segments (project, min_id, max_id);

-- One row per deployment and span of time; parts (per version and role) hold the mergeable sketches.
CREATE TABLE windows (
  project    TEXT NOT NULL,
  id         TEXT NOT NULL,
  deployment TEXT NOT NULL,
  start_us   BIGINT NOT NULL,
  end_us     BIGINT NOT NULL,
  state      TEXT NOT NULL,            -- open | closed
  revision   BIGINT NOT NULL,          -- +1 whenever late rows or labels change what it says
  stale      BIGINT NOT NULL,          -- 1: rows came after it was judged
  report     TEXT NOT NULL,            -- JSON of records.monitoring.WindowReport, '' while open
  PRIMARY KEY (project, id)
);
CREATE UNIQUE INDEX windows_span ON windows (project, deployment, start_us, end_us);
CREATE INDEX windows_state ON windows (project, state, end_us);

CREATE TABLE window_parts (
  project TEXT NOT NULL,
  window_id TEXT NOT NULL,
  model   TEXT NOT NULL,
  version BIGINT NOT NULL,
  role    TEXT NOT NULL,
  requests BIGINT NOT NULL,
  rows_n  BIGINT NOT NULL,
  errors  TEXT NOT NULL,               -- JSON {status: count}
  last_us BIGINT NOT NULL,
  profile TEXT NOT NULL,               -- JSON of records.profile.Profile: inputs
  vitals  TEXT NOT NULL,               -- JSON of records.profile.Profile: prediction, latency
  PRIMARY KEY (project, window_id, model, version, role)
);

-- Quality per window and scorer, revised as labels arrive.
CREATE TABLE window_performance (
  project   TEXT NOT NULL,
  window_id TEXT NOT NULL,
  scorer    TEXT NOT NULL,             -- version number, or shadow:<name>
  revision  BIGINT NOT NULL,
  rows_n    BIGINT NOT NULL,
  labelled  BIGINT NOT NULL,
  report    TEXT NOT NULL,             -- JSON of records.monitoring.Performance
  PRIMARY KEY (project, window_id, scorer)
);

-- State of the online false-discovery control: one stream per deployment, reference and question.
CREATE TABLE test_streams (
  project TEXT NOT NULL,
  name    TEXT NOT NULL,
  state   TEXT NOT NULL,
  PRIMARY KEY (project, name)
);

-- Score sketches of a version's first windows: what its predictions are compared with.
CREATE TABLE score_baselines (
  project    TEXT NOT NULL,
  deployment TEXT NOT NULL,
  model      TEXT NOT NULL,
  version    BIGINT NOT NULL,
  until_us   BIGINT NOT NULL,
  profile    TEXT NOT NULL,
  PRIMARY KEY (project, deployment, model, version)
);

CREATE TABLE findings (
  project    TEXT NOT NULL,
  window_id  TEXT NOT NULL,
  kind       TEXT NOT NULL,
  subject    TEXT NOT NULL,
  code       TEXT NOT NULL,
  deployment TEXT NOT NULL,
  at_us      BIGINT NOT NULL,          -- end of the window
  severity   TEXT NOT NULL,
  report     TEXT NOT NULL,            -- JSON of records.monitoring.Finding
  PRIMARY KEY (project, window_id, kind, subject, code)
);
CREATE INDEX findings_time ON findings (project, deployment, at_us);

CREATE TABLE alerts (
  project     TEXT NOT NULL,
  id          TEXT NOT NULL,
  deployment  TEXT NOT NULL,
  kind        TEXT NOT NULL,
  subject     TEXT NOT NULL,
  open_key    TEXT,                    -- deployment/kind/subject while open, NULL once resolved: one open alert each
  opened_us   BIGINT NOT NULL,
  last_us     BIGINT NOT NULL,
  resolved_us BIGINT,
  hits        BIGINT NOT NULL,
  quiet       BIGINT NOT NULL,         -- windows in a row without it
  window_id   TEXT NOT NULL,           -- the newest window that showed it
  detail      TEXT NOT NULL,
  PRIMARY KEY (project, id)
);
CREATE UNIQUE INDEX alerts_open ON alerts (project, open_key);
CREATE INDEX alerts_time ON alerts (project, deployment, opened_us);

-- What the labels room may know of predictions.
CREATE VIEW known_predictions AS SELECT project, request, row_no, deployment, at_us FROM predictions WHERE status = 'ok';
