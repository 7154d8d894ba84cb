-- Sessions of browsers: an id is the SHA-256 of the cookie's value, `token` that of the token it was opened with.
CREATE TABLE sessions (
  id         TEXT PRIMARY KEY,
  token      TEXT NOT NULL,
  principal  TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  seen_us    BIGINT NOT NULL,
  expires_us BIGINT NOT NULL,
  revoked_us BIGINT
);
CREATE INDEX sessions_expires ON sessions (expires_us);

-- 1: a tree whose files this project was shown to own when it was referred to, so they are readable through it.
-- Bytes that only look like a tree open nothing.
ALTER TABLE object_refs ADD COLUMN tree BIGINT NOT NULL DEFAULT 0;
UPDATE object_refs SET tree = 1 WHERE EXISTS (
  SELECT 1 FROM dataset_versions v WHERE v.project = object_refs.project AND v.tree = object_refs.digest
);
UPDATE object_refs SET tree = 1 WHERE EXISTS (
  SELECT 1 FROM model_versions v WHERE v.project = object_refs.project AND v.package = object_refs.digest
);
CREATE INDEX object_refs_trees ON object_refs (project, tree);
