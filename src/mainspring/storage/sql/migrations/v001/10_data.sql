-- The data room. A version's id is the digest of its content; number counts commits of a dataset from 1 and is never reused.
CREATE TABLE datasets (
  project     TEXT NOT NULL,
  name        TEXT NOT NULL,
  next_number BIGINT NOT NULL,
  created_us  BIGINT NOT NULL,
  PRIMARY KEY (project, name)
);

CREATE TABLE dataset_versions (
  project    TEXT NOT NULL,
  dataset    TEXT NOT NULL,
  id         TEXT NOT NULL,        -- content digest
  number     BIGINT NOT NULL,
  kind       TEXT NOT NULL,        -- table | files
  tree       TEXT NOT NULL,        -- digest of the tree object
  row_count  BIGINT,               -- NULL for files
  bytes      BIGINT NOT NULL,
  file_count BIGINT NOT NULL,
  columns    TEXT NOT NULL,        -- JSON list of TableColumn
  message    TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  profile    TEXT,                 -- digest of the profile object, made on first demand
  deleted_us BIGINT,               -- the row stays, the bytes may go
  PRIMARY KEY (project, dataset, id),
  UNIQUE (project, dataset, number)
);
CREATE INDEX dataset_versions_id ON dataset_versions (project, id);

CREATE TABLE dataset_tags (
  project TEXT NOT NULL,
  dataset TEXT NOT NULL,
  tag     TEXT NOT NULL,
  id      TEXT NOT NULL,
  PRIMARY KEY (project, dataset, tag)
);

-- Objects put on their own (lineage/uploads.py): kept until they expire or something refers to them.
CREATE TABLE uploads (
  project    TEXT NOT NULL,
  digest     TEXT NOT NULL,
  size       BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  PRIMARY KEY (project, digest)
);
