-- Why a finished execution's result is never taken again although its key fits; NULL: it may be.
ALTER TABLE step_executions ADD COLUMN unfit TEXT;

-- What a step that ran left in other rooms: replayed as references when its result is taken (pipelines/effects.py).
CREATE TABLE step_effects (
  project   TEXT NOT NULL,
  execution TEXT NOT NULL,
  number    BIGINT NOT NULL,      -- in the order of their making
  effect    TEXT NOT NULL,        -- JSON of records.pipelines.Effect
  PRIMARY KEY (project, execution, number)
);

-- The worker that has or had an execution, and the digest of its environment as it stated it; empty: the runner ran it.
ALTER TABLE step_executions ADD COLUMN worker TEXT NOT NULL DEFAULT '';
ALTER TABLE step_executions ADD COLUMN environment TEXT NOT NULL DEFAULT '';

-- Executions that a worker may take (pipelines/attempts.py).
CREATE TABLE step_offers (
  project    TEXT NOT NULL,
  execution  TEXT NOT NULL,
  job        TEXT NOT NULL,       -- JSON of records.pipelines.StepJob
  unfit      TEXT,                -- why its result will never be taken again, known before it ran
  ttl_us     BIGINT NOT NULL,     -- without a heartbeat for so long its worker has lost it
  token      TEXT NOT NULL DEFAULT '',
  expires_us BIGINT NOT NULL DEFAULT 0,   -- machine clock
  PRIMARY KEY (project, execution)
);
-- What waits for a worker is asked for again and again.
CREATE INDEX step_executions_waiting ON step_executions (project, state, id);
