"""What does a flat cost? From a version of the dataset of offers to a registered model version."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import mainspring as ms
from mainspring.records.models import Column, Signature, Task

INPUTS = ["size_m2", "rooms", "area"]
LABEL = "rent"
SIGNATURE = Signature(
    inputs=[
        Column(name="size_m2", type="float64"),
        Column(name="rooms", type="float64"),
        Column(name="area", type="string"),
    ],
    task=Task.REGRESSION,
)


class Parts(NamedTuple):
    """Training rows, and newer hold-out rows."""

    train: pa.Table
    holdout: pa.Table


@ms.step
def collect(rows: pa.Table, until: str = "") -> pa.Table:
    """The offers known by ``until`` (default: all)."""
    if until:
        moment = pa.scalar(datetime.fromisoformat(until), pa.timestamp("us", "UTC"))
        rows = rows.filter(pc.less_equal(rows["event_time"].cast(moment.type), moment))
    for name in ("size_m2", "rooms", LABEL):
        rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(pa.float64()))
    return rows.sort_by("event_time")


@ms.step
def clean(rows: pa.Table) -> pa.Table:
    """Only offers with a rent."""
    return rows.filter(pc.is_valid(rows[LABEL]))


@ms.step
def split(rows: pa.Table, holdout: int) -> Parts:
    """The newest ``holdout`` rows are the hold-out, the older ones are for training."""
    return Parts(rows.slice(0, rows.num_rows - holdout), rows.slice(rows.num_rows - holdout))


@ms.step
def fit(train: pa.Table, holdout: pa.Table, model: str) -> dict[str, float]:
    """Fit, evaluate on the hold-out, and register the model with its origin."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    context = ms.current()
    workspace = context.workspace()
    training = workspace.data.commit("rents-train", train, inputs=[context.run_ref])
    judging = workspace.data.commit("rents-holdout", holdout, inputs=[context.run_ref])

    prepare = ColumnTransformer(
        [
            ("numbers", StandardScaler(), [0, 1]),
            ("area", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [2]),
        ]
    )
    fitted = make_pipeline(prepare, Ridge(alpha=1.0)).fit(features(train), train[LABEL].to_numpy())
    errors = fitted.predict(features(holdout)) - holdout[LABEL].to_numpy()
    mae = float(np.abs(errors).mean())
    context.log_metric("mae", mae)

    version = workspace.models.save_and_register(
        fitted,
        model=model,
        signature=SIGNATURE,
        sample=holdout.select(INPUTS),
        training=train.select(INPUTS),
        metrics={"mae": mae},
        run=context.run,
        dataset_version=training.id,
        holdout=judging.id,
        label=LABEL,
        profile=workspace.data.get_profile_object("rents-train", training.id).digest,
    )
    return {"version": float(version.version), "mae": mae}


@ms.pipeline
def train(
    data: str = "rents", version: str = "latest", holdout: int = 100, model: str = "rent", until: str = ""
) -> Any:
    """Collect, clean, split, fit and register. ``until`` is the moment of decision, given by the loop.

    The offers are read by version (commit them first), so that the origin of every model names the version that it was trained on.
    """
    parts = split(clean(collect(ms.dataset(data, version), until)), holdout)
    return fit(parts.train, parts.holdout, model)


def features(rows: pa.Table) -> Any:
    """The inputs as the estimator takes them, in the signature's order."""
    return np.array(list(zip(*(rows[name].to_pylist() for name in INPUTS), strict=True)), dtype=object)
