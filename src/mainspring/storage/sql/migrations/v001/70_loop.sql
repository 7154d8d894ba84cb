-- The loop: what it saw, what it decided, and what is under way because of it.
CREATE TABLE loop_ticks (
  project   TEXT NOT NULL,
  seq       BIGINT NOT NULL,
  deployment TEXT NOT NULL,
  at_us     BIGINT NOT NULL,
  facts     TEXT NOT NULL,       -- JSON of records.loop.Facts
  policy    TEXT NOT NULL,       -- JSON of the deploy and retrain policy in force
  decisions TEXT NOT NULL,       -- JSON list of LoopDecision
  PRIMARY KEY (project, seq)
);

CREATE TABLE loop_decisions (
  project    TEXT NOT NULL,
  key        TEXT NOT NULL,
  deployment TEXT NOT NULL,
  action     TEXT NOT NULL,
  reason     TEXT NOT NULL,
  at_us      BIGINT NOT NULL,
  event      TEXT NOT NULL,
  PRIMARY KEY (project, key)     -- one decision exactly once
);

CREATE TABLE loop_jobs (
  project      TEXT NOT NULL,
  id           TEXT NOT NULL,
  deployment   TEXT NOT NULL,
  model        TEXT NOT NULL,
  state        TEXT NOT NULL,
  trigger_kind TEXT NOT NULL,
  reason       TEXT NOT NULL,
  requested_us BIGINT NOT NULL,
  cutoff_us    BIGINT NOT NULL,
  params       TEXT NOT NULL,
  run          TEXT,
  version      BIGINT,
  verdict      TEXT,
  error        TEXT,
  finished_us  BIGINT,
  attempt      BIGINT NOT NULL DEFAULT 0,   -- fencing: only the newest attempt may finish the job
  alive_us     BIGINT,           -- machine time until which the worker is believed alive
  outcome      TEXT,             -- promoted, rolled_back, abandoned, gated, failed; NULL while open
  PRIMARY KEY (project, id)
);
CREATE INDEX loop_jobs_deployment ON loop_jobs (project, deployment, requested_us);

CREATE TABLE verdicts (
  project TEXT NOT NULL,
  id      TEXT NOT NULL,
  model   TEXT NOT NULL,
  version BIGINT NOT NULL,
  passed  BIGINT NOT NULL,
  record  TEXT NOT NULL,         -- JSON of records.loop.Verdict
  digest  TEXT NOT NULL,         -- BLAKE3 of record: a flipped bit is noticed
  at_us   BIGINT NOT NULL,
  PRIMARY KEY (project, id)
);
CREATE INDEX verdicts_version ON verdicts (project, model, version, at_us);

CREATE TABLE rollouts (
  project    TEXT NOT NULL,
  id         TEXT NOT NULL,
  deployment TEXT NOT NULL,
  model      TEXT NOT NULL,
  version    BIGINT NOT NULL,
  champion   BIGINT,
  state      TEXT NOT NULL,
  stage      BIGINT NOT NULL,
  stages     TEXT NOT NULL,
  job        TEXT,
  started_us BIGINT NOT NULL,
  stage_us   BIGINT NOT NULL,
  ended_us   BIGINT,
  reason     TEXT NOT NULL,
  PRIMARY KEY (project, id)
);
CREATE INDEX rollouts_deployment ON rollouts (project, deployment, started_us);

CREATE TABLE freezes (project TEXT NOT NULL, deployment TEXT NOT NULL, until_us BIGINT NOT NULL, PRIMARY KEY (project, deployment));
