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
