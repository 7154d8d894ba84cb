"""Results of statsmodels by their parameters, and pipelines of imbalanced-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from imblearn.over_sampling import RandomOverSampler
from imblearn.pipeline import Pipeline as Resampled
from imblearn.under_sampling import RandomUnderSampler
from lightgbm import LGBMClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mainspring.errors import InvalidInput
from mainspring.models import formats


def make_frame(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"sepal length": rng.normal(size=rows), "width": rng.normal(5, 2, rows)})


def make_target(frame: pd.DataFrame, seed: int = 5) -> Any:
    noise = np.random.default_rng(seed).normal(size=len(frame))
    return 2 * frame["sepal length"] - 0.5 * frame["width"] + noise


_Fit = Callable[[pd.DataFrame, Any], Any]
RESULTS: dict[str, _Fit] = {
    "OLS": lambda f, t: sm.OLS(t, sm.add_constant(f)).fit(),
    "OLS without a constant": lambda f, t: sm.OLS(t, f).fit(),
    "OLS, constant last": lambda f, t: sm.OLS(t, sm.add_constant(f, prepend=False)).fit(),
    "WLS": lambda f, t: sm.WLS(t, sm.add_constant(f), weights=np.arange(1, len(f) + 1)).fit(),
    "RLM": lambda f, t: sm.RLM(t, sm.add_constant(f)).fit(),
    "ridge": lambda f, t: sm.OLS(t, sm.add_constant(f)).fit_regularized(alpha=0.1),
    "GLM poisson": lambda f, t: sm.GLM(
        np.abs(t).round(), sm.add_constant(f), family=sm.families.Poisson()
    ).fit(),
    "GLM gaussian": lambda f, t: sm.GLM(t, sm.add_constant(f)).fit(),
    "Poisson": lambda f, t: sm.Poisson(np.abs(t).round(), sm.add_constant(f)).fit(disp=0),
    "formula": lambda f, t: smf.ols("y ~ width", f.assign(y=t)).fit(),
    "Logit": lambda f, t: sm.Logit((t > -2).astype(int), sm.add_constant(f)).fit(disp=0),
    "GLM binomial": lambda f, t: sm.GLM(
        (t > -2).astype(int), sm.add_constant(f), family=sm.families.Binomial()
    ).fit(),
    "MNLogit": lambda f, t: sm.MNLogit(np.digitize(t, [-4, -1]), sm.add_constant(f)).fit(disp=0),
    "formula logit": lambda f, t: smf.logit("y ~ width", f.assign(y=(t > -2).astype(int))).fit(disp=0),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_stored_by_their_parameters(name: str, tmp_path: Path) -> None:
    frame = make_frame(400, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = RESULTS[name](frame, make_target(frame))
        package = formats.save(results, tmp_path / "p", sample=frame)
        other = make_frame(10_000, 2)
        formula = "formula" in name
        design = (
            sm.add_constant(other, prepend=name != "OLS, constant last")
            if name != "OLS without a constant"
            else other
        )
        expected = np.asarray(results.predict(other if formula else design))
    assert package.format == "onnx"
    loaded = formats.load(tmp_path / "p")
    scores = loaded.compute_scores({c: other[c].tolist() for c in other})
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-14)
    if loaded.classes:
        assert loaded.classes == list(range(len(loaded.classes)))


def test_results_of_arrays(tmp_path: Path) -> None:
    frame = make_frame(400, 1)
    x, t = frame.to_numpy(), make_target(frame).to_numpy()
    results = sm.OLS(t, sm.add_constant(x)).fit()
    formats.save(results, tmp_path / "without", sample=x)
    np.testing.assert_allclose(formats.load(tmp_path / "without").predict(x), results.predict(), rtol=1e-12)
    formats.save(results, tmp_path / "with", sample=sm.add_constant(x))
    stored = formats.load(tmp_path / "with")
    assert [c.name for c in stored.signature.inputs] == ["x0", "x1", "x2"]
    np.testing.assert_allclose(stored.predict(sm.add_constant(x)), results.predict(), rtol=1e-12)


@pytest.mark.parametrize(
    ("fit", "why"),
    [
        (lambda f, t: smf.ols("y ~ np.log(width + 20)", f.assign(y=t)).fit(), "a formula is not stored"),
        (lambda f, t: sm.Probit((t > -2).astype(int), sm.add_constant(f)).fit(disp=0), "Probit"),
        (
            lambda f, t: sm.GLM(
                np.abs(t).round(), f, family=sm.families.Poisson(), offset=np.ones(len(f))
            ).fit(),
            "offset",
        ),
    ],
    ids=["formula", "probit", "offset"],
)
def test_what_the_parameters_do_not_say_is_refused(fit: _Fit, why: str, tmp_path: Path) -> None:
    """Seen red: with the offset unchecked the answers of the stored model lacked it, and so did those that it was compared with."""
    frame = make_frame(400, 1)
    with pytest.raises(InvalidInput, match=why):
        formats.save(fit(frame, make_target(frame)), tmp_path / "p", sample=frame)


@pytest.mark.parametrize(
    "last", [LogisticRegression(), LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1)]
)
@pytest.mark.parametrize("scaled", [True, False])
def test_steps_that_resample_do_nothing_in_prediction(last: Any, scaled: bool, tmp_path: Path) -> None:
    frame = make_frame(600, 1)
    y = np.where(make_target(frame) > 0, "rare", "usual")
    steps = [("over", RandomOverSampler(random_state=0)), ("under", RandomUnderSampler(random_state=0))]
    model = Resampled(
        [("scale", StandardScaler()), *steps, ("last", last)] if scaled else [*steps, ("last", last)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(frame, y)
        assert formats.save(model, tmp_path / "p", sample=frame).format == "onnx"
        other = make_frame(10_000, 2)
        loaded = formats.load(tmp_path / "p")
        np.testing.assert_allclose(
            loaded.predict_proba(other), model.predict_proba(other), atol=1e-14, rtol=0
        )
        np.testing.assert_array_equal(loaded.predict(other), model.predict(other))
