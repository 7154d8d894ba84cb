"""Will this flight arrive more than 15 minutes late? From the feed to a registered model version.

``until`` is the moment of decision: a row whose label arrived later does not exist here. Features are what is known at the
scheduled departure: the timetable and the weather at the scheduled hour.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mainspring.models.formats.columns import clean as model_columns
from mainspring.pipelines.context import current
from mainspring.pipelines.step import pipeline, step
from mainspring.records.models import Column, Signature, Task
from mainspring.training.search import Family, Real, Whole, search
from mainspring.training.slices import evaluate
from mainspring.training.splits import DAY_US, expanding_folds, time_split

NUMBERS = ["hour", "distance", "temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
TEXTS = ["carrier", "origin", "dest", "weekday"]
WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
LABEL = "late"
SIGNATURE = Signature(
    inputs=[Column(name=n, type="float64", nullable=n in WEATHER) for n in NUMBERS]
    + [Column(name=n, type="string") for n in TEXTS],
    task=Task.BINARY,
    classes=["on_time", "late"],
)
SEARCH_ROWS = 12_000
FIT_ROWS = 60_000


class Parts(NamedTuple):
    """Training rows and locked hold-out rows, in time order."""

    train: pa.Table
    holdout: pa.Table


@step
def collect(feed: str, until: str) -> pa.Table:
    """Everything in the feed whose label had arrived by ``until``; a file that came or changed makes it run again."""
    moment = pa.scalar(datetime.fromisoformat(until), pa.timestamp("us", "UTC"))
    files = sorted(Path(feed).glob("*.parquet"))
    tables = [t.filter(pc.less_equal(t["label_arrived_at"], moment)) for t in map(pq.read_table, files)]
    rows = pa.concat_tables(tables)
    # A corrected delivery repeats flights under a later arrival: the newest row counts.
    newest = rows.group_by("flight_id").aggregate([("label_arrived_at", "max")])
    keys = newest.rename_columns(["flight_id", "label_arrived_at"])
    return rows.join(keys, ["flight_id", "label_arrived_at"], join_type="left semi").sort_by(
        [("event_time", "ascending"), ("flight_id", "ascending")]
    )


@step(cache=False)
def record(rows: pa.Table, until: str) -> str:
    """Commit the collected rows as a version of ``flights``, after the checks of the policy; returns the version's id."""
    workspace = current().workspace()
    checks = workspace.settings.config.data["flights"].checks
    version = workspace.data.commit(
        "flights", rows, message=f"known at {until}", checks=checks, inputs=[current().run_ref]
    )
    return str(version.id)


@step
def clean(rows: pa.Table, temp_unit: str = "F") -> pa.Table:
    """Only flights that arrived, with the label made from the delay; columns known only after departure are dropped here.

    ``temp_unit``: the unit of the temperatures that the model learns. The feed and the requests are in Fahrenheit: if you
    change this, change the serving side too.
    """
    arrived = rows.filter(pc.is_valid(rows["arr_delay"]))
    late = pc.greater(arrived["arr_delay"], 15)
    if temp_unit == "C":
        for name in ("temp", "dewp"):
            celsius = pc.divide(pc.subtract(arrived[name], 32.0), 1.8)
            arrived = arrived.set_column(arrived.schema.get_field_index(name), name, celsius)
    for name in NUMBERS:
        # Inputs reach a served model as float32: train on exactly those, or a tree's threshold falls between the two.
        exact = arrived[name].cast(pa.float32(), safe=False).cast(pa.float64())
        arrived = arrived.set_column(arrived.schema.get_field_index(name), name, exact)
    kept = ["flight_id", "event_time", "label_arrived_at", *NUMBERS, *TEXTS]
    return arrived.select(kept).append_column(LABEL, late)


@step
def split(rows: pa.Table, until: str, holdout_days: int) -> Parts:
    """The newest ``holdout_days`` are the hold-out; earlier rows whose labels had arrived before it are for training."""
    cutoff = int(datetime.fromisoformat(until).timestamp() * 1_000_000)
    parts = time_split(
        _micros(rows, "event_time"),
        _micros(rows, "label_arrived_at"),
        cutoff_us=cutoff,
        holdout_us=holdout_days * DAY_US,
    )
    return Parts(rows.take(parts.train), rows.take(parts.holdout))


@step
def tune(train: pa.Table, trials: int, half_life: int, seed: int, family: str = "") -> dict[str, Any]:
    """Tune three families (or the named one) on the same time folds; returns the selected one with its params."""
    chosen = train.take(even_sample(train.num_rows, SEARCH_ROWS, seed))
    y = labels(chosen)
    folds = expanding_folds(
        _micros(chosen, "event_time"),
        _micros(chosen, "label_arrived_at"),
        folds=3,
        fold_us=5 * DAY_US,
        min_train=500,
    )
    matrix = features(chosen)

    moments = _micros(chosen, "event_time")

    def fit(name: str) -> Any:
        def with_params(params: Any, rows: Any) -> Any:
            model = fitted(name, params, matrix[rows], y[rows], seed, recency(moments[rows], half_life))
            return lambda other: model.predict_proba(matrix[other])[:, 1]

        return with_params

    wanted = [family] if family else PREFERRED
    families = [Family(name, fit(name), SPACES[name], DEFAULTS[name]) for name in wanted]
    selection = search(
        families,
        y,
        folds,
        task=Task.BINARY,
        trials=trials,
        blocks=moments // DAY_US,
        seed=seed,
        prefer="simplest",
    )
    for trial in selection.trials:
        if trial.loss is not None:
            current().log_metric(f"trial_{trial.number}_{trial.family}_log_loss", trial.loss)
    return {
        "family": selection.family,
        "params": selection.params,
        "reason": selection.reason,
        "log_loss": selection.trials[selection.selected].loss,
    }


@step(cache=False)
def train_and_register(
    parts_train: pa.Table,
    parts_holdout: pa.Table,
    chosen: dict[str, Any],
    source: str,
    model: str,
    until: str,
    half_life: int,
    seed: int,
) -> dict[str, Any]:
    """Fit the selected family on the training rows, evaluate it, and register it with its origin."""
    context = current()
    workspace = context.workspace()
    inputs = [context.run_ref, f"dataset_version:{source}"]
    training = workspace.data.commit("flights-train", parts_train, message=f"known at {until}", inputs=inputs)
    holdout = workspace.data.commit(
        "flights-holdout", parts_holdout, message=f"newest at {until}", inputs=inputs
    )
    workspace.training.lock_holdout(dataset_version=holdout.id)
    rows = parts_train.take(even_sample(parts_train.num_rows, FIT_ROWS, seed))
    weights = recency(_micros(rows, "event_time"), half_life)
    model_ = fitted(chosen["family"], chosen["params"], features(rows), labels(rows), seed, weights)
    workspace.training.use_holdout(
        dataset_version=holdout.id, purpose="evaluation after training", by="train"
    )
    scores = model_.predict_proba(features(parts_holdout))[:, 1]
    result = evaluate(
        labels(parts_holdout), scores, task=Task.BINARY, metrics=["log_loss", "auc", "brier"], blocks=_micros(parts_holdout, "event_time") // DAY_US,
        slices={"carrier": parts_holdout["carrier"].to_pylist(), "origin": parts_holdout["origin"].to_pylist()}, replicates=100, seed=seed,
    )  # fmt: skip
    metrics = {
        name: estimate.value for name, estimate in result.metrics.items() if estimate.value is not None
    }
    bounds = {
        f"{name}.{end}": getattr(estimate, end)
        for name, estimate in result.metrics.items()
        for end in ("low", "high")
    }
    context.used(f"dataset_version:{training.id}")
    sample = parts_holdout.select(NUMBERS + TEXTS).slice(0, 200)
    version = workspace.models.save_and_register(
        model_, model=model, signature=SIGNATURE, sample=sample, training=rows.select(NUMBERS + TEXTS), metrics={**metrics, **{k: v for k, v in bounds.items() if v is not None}}, run=context.run, dataset_version=training.id, holdout=holdout.id,
        label=LABEL, profile=workspace.data.get_profile_object("flights-train", training.id).digest, tags={"family": chosen["family"], "params": json.dumps(chosen["params"])},
    )  # fmt: skip
    context.produced(f"model_version:{model}@{version.version}")
    subject = f"model_version:{model}@{version.version}"
    workspace.training.record_evaluation(
        evaluation=msgspec.structs.replace(result, subject=subject, dataset_version=holdout.id)
    )
    return {"version": version.version, "family": chosen["family"], "rows": parts_train.num_rows, **metrics}


@pipeline
def train(
    until: str,
    feed: str = "feed",
    model: str = "delay",
    holdout_days: int = 7,
    half_life: int = 60,
    temp_unit: str = "F",
    family: str = "",
    trials: int = 6,
    seed: int = 1,
) -> Any:
    """Collect, clean, split, tune, train and register. ``half_life``: days after which a row counts half (0: all alike)."""
    collected = collect(feed, until)
    source = record(collected, until)
    parts = split(clean(collected, temp_unit), until, holdout_days)
    chosen = tune(parts.train, trials, half_life, seed, family)
    return train_and_register(parts.train, parts.holdout, chosen, source, model, until, half_life, seed)


# --- models ----------------------------------------------------------------------------------------------------------

SPACES = {
    "logistic": {"C": Real(0.01, 1.0, log=True)},
    "curves": {"C": Real(0.01, 1.0, log=True)},
    "forest": {"max_depth": Whole(6, 12), "min_samples_leaf": Whole(20, 80, log=True)},
    "boosting": {
        "max_iter": Whole(40, 140),
        "max_leaf_nodes": Whole(8, 24),
        "learning_rate": Real(0.03, 0.12, log=True),
    },
}
# The best in January comes first: it is replaced only if it is shown to be worse than another, not by the noise of a few folds.
# "curves" is tried only by name.
PREFERRED = ["boosting", "forest", "logistic"]
DEFAULTS = {
    "logistic": {"C": 0.1},
    "curves": {"C": 0.1},
    "forest": {"max_depth": 10, "min_samples_leaf": 30},
    "boosting": {"max_iter": 60, "max_leaf_nodes": 12, "learning_rate": 0.06},
}


def estimator(family: str, params: dict[str, Any], seed: int) -> Any:
    """An unfitted pipeline over the columns in the signature's order: numbers first, then texts."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, PolynomialFeatures, StandardScaler

    numbers = list(range(len(NUMBERS)))
    texts = [len(NUMBERS) + i for i in range(len(TEXTS))]
    filled = SimpleImputer(strategy="median")
    if family in {"logistic", "curves"}:
        # Bins, not slopes: a line through January's temperatures does not extrapolate to July's; the last bin stays bounded.
        bins = make_pipeline(filled, KBinsDiscretizer(10, encode="onehot-dense", strategy="uniform"))
        smooth = make_pipeline(filled, StandardScaler(), PolynomialFeatures(2, include_bias=False))
        known = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        inputs = ColumnTransformer(
            [("n", bins if family == "logistic" else smooth, numbers), ("t", known, texts)]
        )
        return make_pipeline(inputs, LogisticRegression(max_iter=200, random_state=seed, **params))
    # Trees split on carrier and origin; a hundred destinations as columns cost time and improved nothing.
    inputs = ColumnTransformer(
        [
            ("n", filled, numbers),
            ("t", OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts[:2]),
        ]
    )
    if family == "forest":
        return make_pipeline(inputs, RandomForestClassifier(30, random_state=seed, n_jobs=1, **params))
    boosting = HistGradientBoostingClassifier(
        min_samples_leaf=100, l2_regularization=5.0, early_stopping=False, random_state=seed, **params
    )
    return make_pipeline(inputs, boosting)


def recency(moments: Any, half_life: int) -> Any:
    """Weight of each row by its age in days (1 on average), since the share of late flights changes with the season. None: all equal."""
    if half_life <= 0:
        return None
    weights = 0.5 ** ((moments.max() - moments) / (half_life * DAY_US))
    return weights / weights.mean()


def fitted(family: str, params: Any, matrix: Any, y: Any, seed: int, weights: Any = None) -> Any:
    """A fitted estimator. One thread: on a machine that also serves, more threads wait for each other and gain nothing."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        model = estimator(family, dict(params), seed)
        options = {} if weights is None else {f"{model.steps[-1][0]}__sample_weight": weights}
        return model.fit(matrix, y, **options)


def features(rows: pa.Table) -> Any:
    """The inputs as the estimators take them, read exactly as serving reads a request."""
    columns = model_columns(
        {name: rows[name].to_numpy(zero_copy_only=False) for name in NUMBERS + TEXTS}, SIGNATURE
    )
    matrix = np.empty((rows.num_rows, len(columns)), dtype=object)
    for position, values in enumerate(columns.values()):
        matrix[:, position] = values
    return matrix


def labels(rows: pa.Table) -> Any:
    """The labels as 0 and 1."""
    return rows[LABEL].to_numpy(zero_copy_only=False).astype(np.int64)


def _micros(rows: pa.Table, column: str) -> Any:
    """A column of times in microseconds."""
    return rows[column].cast(pa.int64()).to_numpy()


def even_sample(rows: int, most: int, seed: int) -> Any:
    """Row numbers in order: all, or an even sample of ``most``."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
