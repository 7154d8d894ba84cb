"""skops keeps the contract of model formats. Its hostile twins are in ``tests/abuse/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mainspring.models import formats
from mainspring.models.formats.model import Model
from mainspring.testing.formats import FormatContract


class TestSkops(FormatContract):
    form = "skops"


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [
        (make_column_selector(dtype_include="number"), make_column_selector(dtype_exclude="number")),
        (make_column_selector(dtype_include=np.number), make_column_selector(dtype_exclude=[np.number])),
        (make_column_selector(dtype_exclude=object), make_column_selector(dtype_include=object)),
        (make_column_selector(pattern="^size"), make_column_selector(pattern="plan")),
    ],
)
@pytest.mark.filterwarnings("ignore:For backward compatibility")
def test_columns_may_be_chosen_by_a_selector(numbers: Any, texts: Any, tmp_path: Path) -> None:
    """Seen red: no format stored it, though neighbors behind columns that are listed were stored."""
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"size": r.normal(size=200), "plan": r.choice(["basic", "pro"], 200).astype(object)})
    columns = ColumnTransformer(
        [("n", StandardScaler(), numbers), ("t", OneHotEncoder(handle_unknown="ignore"), texts)]
    )
    fitted = make_pipeline(columns, KNeighborsClassifier()).fit(frame, frame["size"] > 0)
    assert formats.save(fitted, tmp_path / "p", sample=frame).format == "skops"
    loaded = Model(formats.load(tmp_path / "p"))
    np.testing.assert_allclose(
        loaded.predict_proba(frame).to_numpy(), fitted.predict_proba(frame), rtol=1e-12
    )
