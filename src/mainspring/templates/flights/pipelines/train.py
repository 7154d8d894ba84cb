"""Will this flight arrive more than 15 minutes late? From the feed to a registered model version.

``until`` is the moment of decision: a row whose label arrived later does not exist here. Features are what is known at the
scheduled departure: the timetable and the weather at the scheduled hour.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import mainspring as ms
from mainspring.training.automl.fitting import fit_estimator
from mainspring.training.search import Real, Whole
from mainspring.training.timed import search_by_time, split_by_time, take_evenly, weigh_by_age

WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
NUMBERS = ["hour", "distance", *WEATHER]
TEXTS = ["carrier", "origin", "dest", "weekday"]
SEARCH_ROWS, FIT_ROWS = 12_000, 60_000
TREES = {"max_iter": Whole(40, 140), "max_leaf_nodes": Whole(8, 24), "learning_rate": Real(0.03, 0.12, log=True)}  # fmt: skip
FAMILIES = {
    # The best in January comes first: it is replaced only if it is shown to be worse, not by the noise of a few folds.
    "boosting": (TREES, {"max_iter": 60, "max_leaf_nodes": 12, "learning_rate": 0.06}),
    "forest": ({"max_depth": Whole(6, 12), "min_samples_leaf": Whole(20, 80, log=True)}, {"max_depth": 10, "min_samples_leaf": 30}),
    "logistic": ({"C": Real(0.01, 1.0, log=True)}, {"C": 0.1}),
    "curves": ({"C": Real(0.01, 1.0, log=True)}, {"C": 0.1}),  # is tried only by name
}  # fmt: skip


@ms.step
def collect(feed: str, until: str) -> pa.Table:
    """Everything in the feed whose label had arrived by ``until``; a file that came or changed makes it run again."""
    rows = pa.concat_tables(map(pq.read_table, sorted(Path(feed).glob("*.parquet"))))
    rows = rows.filter(pc.field("label_arrived_at") <= datetime.fromisoformat(until))
    # A corrected delivery repeats flights under a later arrival: the newest row counts.
    newest = rows.group_by("flight_id").aggregate([("label_arrived_at", "max")])
    rows = rows.join(
        newest, ["flight_id", "label_arrived_at"], ["flight_id", "label_arrived_at_max"], "left semi"
    )
    return rows.sort_by([("event_time", "ascending"), ("flight_id", "ascending")])


@ms.step(cache=False)
def record(rows: pa.Table, until: str) -> str:
    """Commit the collected rows as a version of ``flights``, after the checks of the policy; returns its id."""
    return ms.commit("flights", rows, message=f"known at {until}").id


@ms.step
def clean(rows: pa.Table, temp_unit: str = "F") -> pa.Table:
    """Flights that arrived, with the label made from the delay; what is known only after departure is dropped.

    ``temp_unit``: of the temperatures that the model learns. Feed and requests are in Fahrenheit: change both.
    """
    rows = rows.filter(pc.field("arr_delay").is_valid())
    kept = {n: rows[n] for n in ["flight_id", "event_time", "label_arrived_at", *NUMBERS, *TEXTS]}
    if temp_unit == "C":
        kept |= {n: pc.divide(pc.subtract(rows[n], 32.0), 1.8) for n in ("temp", "dewp")}
    kept["day"] = rows["event_time"].cast(pa.date32())
    return pa.table(kept | {"late": pc.greater(rows["arr_delay"], 15)})


@ms.step
def split(rows: pa.Table, until: str, holdout_days: int) -> tuple[pa.Table, pa.Table]:
    """The newest days are the hold-out; earlier rows whose labels had arrived before it are for training."""
    return split_by_time(rows, until=until, days=holdout_days)


@ms.step
def tune(train: pa.Table, trials: int, half_life: int, seed: int, family: str = "") -> dict[str, Any]:
    """Tune three families (or the named one) on the same time folds; returns the selected one with its params."""
    families = {n: f for n, f in FAMILIES.items() if n == family or (not family and n != "curves")}
    found = search_by_time(
        families, partial(fit_family, half_life=half_life, seed=seed), take_evenly(train, SEARCH_ROWS, seed),
        inputs=NUMBERS + TEXTS, target="late", trials=trials, seed=seed, log=ms.current().log_metric,
    )  # fmt: skip
    return {"family": found.family, "params": found.params, "reason": found.reason}


@ms.step(cache=False)
def fit(train: pa.Table, holdout: pa.Table, chosen: dict[str, Any], source: str, model: str, half_life: int, seed: int) -> ms.Fitted:  # fmt: skip
    """Fit the selected family. What is returned is evaluated on the hold-out and registered, with its origin."""
    family, params = chosen["family"], chosen["params"]
    estimator = fit_family(family, params, take_evenly(train, FIT_ROWS, seed), half_life, seed)
    return ms.Fitted(
        estimator, train, "late", holdout, name=model, classes=["on_time", "late"], nullable=WEATHER,
        group="day",  # flights of one day share their weather: intervals count days, not flights
        slices=["carrier", "origin"], tags={"family": family, "params": json.dumps(params)}, source=source, seed=seed, replicates=100,
    )  # fmt: skip


@ms.pipeline
def train(until: str, feed: str = "feed", model: str = "delay", holdout_days: int = 7, half_life: int = 60,
          temp_unit: str = "F", family: str = "", trials: int = 6, seed: int = 1) -> Any:  # fmt: skip
    """From the feed to a version. ``half_life``: days after which a row counts half (0: all alike)."""
    collected = collect(feed, until)
    rows, holdout = split(clean(collected, temp_unit), until, holdout_days)
    chosen, source = tune(rows, trials, half_life, seed, family), record(collected, until)
    return fit(rows, holdout, chosen, source, model, half_life, seed)


def fit_family(family: str, params: Any, rows: pa.Table, half_life: int, seed: int) -> Any:
    """A fitted pipeline. Newer rows weigh more, since the share of late flights changes with the season."""
    from sklearn import compose, ensemble, impute, linear_model, pipeline, preprocessing

    models = {
        "forest": ensemble.RandomForestClassifier(30, n_jobs=1),
        "boosting": ensemble.HistGradientBoostingClassifier(min_samples_leaf=100, l2_regularization=5.0, early_stopping=False),
    }  # fmt: skip
    model = models.get(family, linear_model.LogisticRegression(max_iter=200)).set_params(random_state=seed, **params)  # fmt: skip
    more = {
        # Bins, not slopes: a line through January's temperatures does not extrapolate to July's.
        "logistic": [preprocessing.KBinsDiscretizer(10, encode="onehot-dense", strategy="uniform")],
        "curves": [preprocessing.StandardScaler(), preprocessing.PolynomialFeatures(2, include_bias=False)],
    }.get(family, [])
    numbers = pipeline.make_pipeline(impute.SimpleImputer(strategy="median"), *more)
    known = preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    # A hundred destinations as columns cost trees time and improved nothing.
    columns = compose.make_column_transformer((numbers, NUMBERS), (known, TEXTS if more else TEXTS[:2]))
    whole, weights = pipeline.Pipeline([("columns", columns), ("model", model)]), weigh_by_age(rows, half_life)  # fmt: skip
    return fit_estimator(whole, rows.select(NUMBERS + TEXTS), rows["late"].to_numpy(), model__sample_weight=weights)  # fmt: skip
