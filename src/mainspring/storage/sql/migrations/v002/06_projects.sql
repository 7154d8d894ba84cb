-- The projects of this workspace: one that is not here does not exist. A project is made by its first opening from its own
-- directory, or by an administrator (lineage/projects.py).
CREATE TABLE projects (
  name       TEXT PRIMARY KEY,
  created_us BIGINT NOT NULL,
  created_by TEXT NOT NULL
);
INSERT INTO projects (name, created_us, created_by)
SELECT project, min(wall_us), 'local' FROM events GROUP BY project;
INSERT INTO projects (name, created_us, created_by)
SELECT DISTINCT project, 0, 'local' FROM settings WHERE project NOT IN (SELECT name FROM projects);
