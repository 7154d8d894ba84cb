-- The current label of a predicted row. seq grows with every change: readers keep a cursor on it.
CREATE TABLE labels (
  project    TEXT NOT NULL,
  request    TEXT NOT NULL,
  row_no     BIGINT NOT NULL,
  revision   BIGINT NOT NULL,
  seq        BIGINT NOT NULL,
  value      TEXT NOT NULL,            -- JSON
  at_us      BIGINT NOT NULL,          -- when it became true
  arrived_us BIGINT NOT NULL,          -- when it came here, policy clock
  source     TEXT NOT NULL,
  PRIMARY KEY (project, request, row_no)
);
CREATE UNIQUE INDEX labels_seq ON labels (project, seq);

-- Every label ever accepted, by content: an identical one is counted once, a conflicting one is the next revision.
CREATE TABLE label_revisions (
  project    TEXT NOT NULL,
  request    TEXT NOT NULL,
  row_no     BIGINT NOT NULL,
  content    TEXT NOT NULL,            -- digest of value, at and source as the sender gave them
  revision   BIGINT NOT NULL,
  value      TEXT NOT NULL,
  at_us      BIGINT NOT NULL,
  arrived_us BIGINT NOT NULL,
  source     TEXT NOT NULL,
  PRIMARY KEY (project, request, row_no, content)
);

-- Labels whose prediction is not known (yet).
CREATE TABLE parked_labels (
  project    TEXT NOT NULL,
  request    TEXT NOT NULL,
  row_no     BIGINT NOT NULL,
  content    TEXT NOT NULL,
  position   BIGINT NOT NULL,          -- order of arrival
  value      TEXT NOT NULL,
  at_us      BIGINT NOT NULL,
  arrived_us BIGINT NOT NULL,
  source     TEXT NOT NULL,
  expires_us BIGINT NOT NULL,
  PRIMARY KEY (project, request, row_no, content)
);
CREATE INDEX parked_labels_expiry ON parked_labels (project, expires_us);
CREATE INDEX parked_labels_position ON parked_labels (project, position);

-- seq: last given out (its row lock makes writers serial); the rest are totals since the beginning.
CREATE TABLE label_counters (
  project  TEXT PRIMARY KEY,
  seq      BIGINT NOT NULL,
  parked   BIGINT NOT NULL,
  expired  BIGINT NOT NULL,
  rejected BIGINT NOT NULL,
  revised  BIGINT NOT NULL,
  cursor   TEXT NOT NULL               -- the position up to which relayed feedback was read
);

-- What monitoring may know of labels: each predicted row with its label, and the same for shadows.
CREATE VIEW labelled_predictions AS
  SELECT p.project, p.request, p.row_no, p.deployment, p.model, p.version, p.role, p.at_us, p.score, p.scores,
         l.value, l.seq, l.revision, l.at_us AS label_us, l.arrived_us
  FROM predictions p JOIN labels l ON l.project = p.project AND l.request = p.request AND l.row_no = p.row_no
  WHERE p.status = 'ok';

CREATE VIEW labelled_shadows AS
  SELECT s.project, s.request, s.row_no, s.name, s.deployment, s.model, s.version, s.at_us, s.score, s.scores,
         l.value, l.seq, l.revision, l.at_us AS label_us, l.arrived_us
  FROM shadow_predictions s JOIN labels l ON l.project = s.project AND l.request = s.request AND l.row_no = s.row_no
  WHERE s.status = 'ok';
