"""What does a flat cost? From a version of the dataset of offers to a registered model version."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import mainspring as ms

INPUTS = ["size_m2", "rooms", "area"]
LABEL = "rent"


@ms.step
def clean(rows: pa.Table, until: str = "") -> pa.Table:
    """The offers with a rent that were known by ``until`` (default: all), oldest first."""
    rows = rows.filter(pc.is_valid(rows[LABEL])).sort_by("event_time")
    if until:
        moment = pa.scalar(datetime.fromisoformat(until), pa.timestamp("us", "UTC"))
        rows = rows.filter(pc.less_equal(rows["event_time"].cast(moment.type), moment))
    return rows


@ms.step
def split(rows: pa.Table, holdout: int) -> tuple[pa.Table, pa.Table]:
    """The older rows are for training, the newest ``holdout`` rows judge."""
    return rows.slice(0, rows.num_rows - holdout), rows.slice(rows.num_rows - holdout)


@ms.step
def fit(train: pa.Table, holdout: pa.Table, model: str) -> ms.Fitted:
    """Fit. What is returned is evaluated on the hold-out and registered, with its origin."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    areas = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((StandardScaler(), ["size_m2", "rooms"]), (areas, ["area"]))
    estimator = make_pipeline(columns, Ridge()).fit(train.select(INPUTS), train[LABEL].to_numpy())
    return ms.Fitted(estimator, train, LABEL, holdout, name=model, time="event_time")


@ms.pipeline
def train(
    data: str = "rents", version: str = "latest", holdout: int = 100, model: str = "rent", until: str = ""
) -> Any:
    """Clean, split, fit and register. ``until`` is the moment of decision, given by the loop.

    The offers are read by version (commit them first): the origin of every model names the one that it was trained on.
    """
    rows, judging = split(clean(ms.dataset(data, version), until), holdout)
    return fit(rows, judging, model)
