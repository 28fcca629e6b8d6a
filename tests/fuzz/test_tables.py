"""Tables of runs, whatever is in them: a fit or one line, and no warning of NumPy's."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.scaling.fit.__main__ import main

FEW = settings(max_examples=max(12, settings().max_examples // 10))  # each is a fit
CELLS = st.sampled_from(
    [
        0,
        -1,
        1,
        1e-30,
        1e30,
        float("nan"),
        float("inf"),
        "",
        "31M",
        "1,234",
        "1e9",
        "diverged",
        None,
        True,
        "½",
        "2,5",
        3.5,
    ]
)


def law(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return 1.69 + 406.4 / N**0.34 + 410.7 / D**0.28


def table(sizes: int, lengths: int) -> pd.DataFrame:
    N, D = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e8, sizes), np.geomspace(1e8, 1e10, lengths)))
    loss = law(N, D)
    more = {
        "unique_tokens": D / 2,
        "accuracy": 1 / (1 + np.exp(4 * (loss - 2.5))),
        "run": [f"n{n:.0f}" for n in N],
    }
    return pd.DataFrame({"parameters": N, "tokens": D, "flops": 6 * N * D, "loss": loss, **more})


METHODS = ("parametric", "isoflop", "envelope", "compute", "overtraining", "repetition", "accuracy")


@pytest.mark.parametrize("method", METHODS)
@FEW
@given(data=st.data())
def test_any_table_is_fitted_or_refused_in_one_line(method, tmp_path_factory, data, capsys):
    runs = table(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))).astype(object)
    for _ in range(data.draw(st.integers(0, 3))):
        row, column = data.draw(st.integers(0, len(runs) - 1)), data.draw(st.sampled_from(list(runs.columns)))
        runs.loc[row, column] = data.draw(CELLS)
    if data.draw(st.booleans()):
        runs = pd.concat([runs] * data.draw(st.integers(2, 3)))
    path = Path(tmp_path_factory.getbasetemp()) / "runs.csv"
    runs.to_csv(path, index=False)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = main([f"data={path}", f"method={method}", "bootstrap=0"])
    printed, error = capsys.readouterr()
    assert code in (0, 2)
    assert "Traceback" not in error
    if code == 2:
        assert error.count("\n") == 1
    else:
        assert "nan" not in printed.lower().split()


@FEW
@given(st.binary(max_size=200), st.sampled_from([".csv", ".parquet"]))
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory, capsys, content, suffix):
    path = Path(tmp_path_factory.getbasetemp()) / f"any{suffix}"
    path.write_bytes(content)
    capsys.readouterr()
    assert main([f"data={path}", "method=parametric"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
