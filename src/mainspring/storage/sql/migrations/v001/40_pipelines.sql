-- Pipelines: runs of a graph, and executions of its steps (pipelines/state.py).
CREATE TABLE pipeline_runs (
  project     TEXT NOT NULL,
  id          TEXT NOT NULL,
  pipeline    TEXT NOT NULL,
  state       TEXT NOT NULL,
  params      TEXT NOT NULL,      -- JSON
  graph       TEXT NOT NULL,      -- JSON of records.pipelines.Graph
  source      TEXT NOT NULL,      -- file:name, relative to root
  root        TEXT NOT NULL,      -- project directory on the runner's machine
  environment TEXT NOT NULL,
  at_us       BIGINT NOT NULL,    -- policy clock
  started_us  BIGINT NOT NULL,    -- machine clock
  ended_us    BIGINT,
  error       TEXT,               -- JSON of records.pipelines.StepError
  failed_step TEXT,
  cancel      BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (project, id)
);
CREATE INDEX pipeline_runs_name ON pipeline_runs (project, pipeline, id);

CREATE TABLE step_executions (
  project     TEXT NOT NULL,
  id          TEXT NOT NULL,
  run         TEXT NOT NULL,
  pipeline    TEXT NOT NULL,
  step        TEXT NOT NULL,
  state       TEXT NOT NULL,
  attempt     BIGINT NOT NULL,
  cache_key   TEXT,
  ingredients TEXT,               -- JSON of records.pipelines.Ingredients
  inputs      TEXT NOT NULL DEFAULT '[]',
  outputs     TEXT NOT NULL DEFAULT '[]',
  shape       TEXT NOT NULL DEFAULT 'single',
  metrics     TEXT NOT NULL DEFAULT '{}',
  log         TEXT,               -- object digest
  error       TEXT,
  why         TEXT,               -- JSON of records.pipelines.Why
  cached_from TEXT,
  started_us  BIGINT NOT NULL,
  ended_us    BIGINT,
  PRIMARY KEY (project, id)
);
CREATE INDEX step_executions_run ON step_executions (project, run, step, attempt);
-- Only what really ran can serve as a cache entry.
CREATE INDEX step_executions_key ON step_executions (project, cache_key, state);
CREATE INDEX step_executions_name ON step_executions (project, pipeline, step, id);
