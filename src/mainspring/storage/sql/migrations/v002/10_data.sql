-- How the source of a version was read when it was first committed: JSON of ReadReport; NULL for files, for what was given as it is,
-- and for versions of before.
ALTER TABLE dataset_versions ADD COLUMN reading TEXT;
