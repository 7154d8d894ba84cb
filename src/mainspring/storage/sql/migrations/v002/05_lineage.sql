-- Which event of the chain recorded the edge. NULL: recorded by version 1, outside the chain (lineage/audit.py).
ALTER TABLE edges ADD COLUMN event BIGINT;
CREATE INDEX edges_event ON edges (project, event);
