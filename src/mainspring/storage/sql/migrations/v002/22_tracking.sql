CREATE UNIQUE INDEX experiments_id ON experiments (id);
CREATE INDEX experiments_deleted ON experiments (project, deleted_us);
