-- Experiments have an id, and their name is what it is shown by: it may change. Runs name the experiment by its id (21_experiments.py).
ALTER TABLE experiments ADD COLUMN id TEXT NOT NULL DEFAULT '';
ALTER TABLE experiments ADD COLUMN deleted_us BIGINT;

-- Runs that sort alike come by their number, and so do those without the value that is sorted by.
CREATE INDEX runs_num ON runs (project, num);
