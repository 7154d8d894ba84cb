-- Locked hold-outs, every look at them, and recorded evaluations (training/operations.py).
CREATE TABLE holdouts (
  project         TEXT NOT NULL,
  dataset_version TEXT NOT NULL,
  uses            BIGINT NOT NULL,
  max_uses        BIGINT,
  locked_us       BIGINT NOT NULL,
  PRIMARY KEY (project, dataset_version)
);

CREATE TABLE holdout_uses (
  project         TEXT NOT NULL,
  id              TEXT NOT NULL,
  dataset_version TEXT NOT NULL,
  purpose         TEXT NOT NULL,
  actor           TEXT NOT NULL,
  at_us           BIGINT NOT NULL,
  number          BIGINT NOT NULL,
  PRIMARY KEY (project, id),
  UNIQUE (project, dataset_version, number)
);

CREATE TABLE evaluations (
  project         TEXT NOT NULL,
  id              TEXT NOT NULL,
  subject         TEXT NOT NULL,
  dataset_version TEXT NOT NULL,
  actor           TEXT NOT NULL,
  at_us           BIGINT NOT NULL,
  body            TEXT NOT NULL,  -- records.training.Evaluation as JSON
  PRIMARY KEY (project, id)
);
CREATE INDEX evaluations_subject ON evaluations (project, subject, id);
CREATE INDEX evaluations_dataset ON evaluations (project, dataset_version, id);
