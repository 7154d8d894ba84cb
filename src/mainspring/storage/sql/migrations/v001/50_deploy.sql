-- How requests to a deployment are answered now. routes: JSON of records.serving.Deployment.
CREATE TABLE deployments (
  project    TEXT NOT NULL,
  name       TEXT NOT NULL,
  number     BIGINT NOT NULL,          -- route table in which it last changed
  routes     TEXT NOT NULL,
  updated_us BIGINT NOT NULL,
  PRIMARY KEY (project, name)
);

-- Every change of routes, for good.
CREATE TABLE deployment_history (
  project    TEXT NOT NULL,
  name       TEXT NOT NULL,
  number     BIGINT NOT NULL,
  routes     TEXT NOT NULL,
  reason     TEXT NOT NULL,
  actor      TEXT NOT NULL,
  at_us      BIGINT NOT NULL,
  event      TEXT NOT NULL,
  PRIMARY KEY (project, name, number)
);

-- Outbox: route tables decided, and whether the bundle has been written from them.
CREATE TABLE bundles (
  project      TEXT NOT NULL,
  number       BIGINT NOT NULL,
  document     TEXT NOT NULL,          -- JSON of records.serving.RouteTable, sealed
  decided_us   BIGINT NOT NULL,
  published_us BIGINT,
  PRIMARY KEY (project, number)
);
