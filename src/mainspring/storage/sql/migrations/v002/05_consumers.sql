-- Who reads the event chain, and how far each has come (lineage/consumers.py). Times are of the machine, not of policy.
CREATE TABLE consumers (
  project    TEXT NOT NULL,
  name       TEXT NOT NULL,
  kinds      TEXT,                       -- JSON list of the kinds it takes; NULL: all
  cursor     BIGINT NOT NULL,            -- sequence number of the last event that it is done with
  created_us BIGINT NOT NULL,
  moved_us   BIGINT,                     -- when something was delivered last
  attempts   BIGINT NOT NULL DEFAULT 0,  -- failed ones, of the event that follows the cursor
  retry_us   BIGINT NOT NULL DEFAULT 0,  -- not before
  failing_us BIGINT,                     -- since the first failure after the last success
  error      TEXT,                       -- of the last failure since then
  PRIMARY KEY (project, name)
);

-- Events that a consumer could not be given, set aside so that the others go on.
CREATE TABLE failed_deliveries (
  project  TEXT NOT NULL,
  consumer TEXT NOT NULL,
  seq      BIGINT NOT NULL,
  event    TEXT NOT NULL,
  kind     TEXT NOT NULL,
  attempts BIGINT NOT NULL,
  error    TEXT NOT NULL,
  at_us    BIGINT NOT NULL,
  again    BIGINT NOT NULL DEFAULT 0,    -- 1: somebody asked for one more attempt
  PRIMARY KEY (project, consumer, seq)
);
