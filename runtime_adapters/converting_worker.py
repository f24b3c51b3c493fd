"""The process of `runtime_adapters.converting`: jail itself, unpickle, write down every form, and what it answers.

`python -m runtime_adapters.converting_worker JOB` in an empty directory, the only one that it may write to.

Only the standard library is imported above: the jail must stand before there is a second thread.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime_adapters.jail import JailPlan, JailReport, enter_jail

_ROWS = 256
_SHORT_CHARACTERS = 300


def main(job: dict[str, Any]) -> dict[str, Any]:
    artifact = Path(job["artifact"])
    walls = JailReport()
    if job["jailed"]:
        walls = enter_jail(JailPlan(artifact=artifact, scratch=Path.cwd(), file_bytes_max=job["file_bytes"]))
        if not walls.confined:
            return {"unconfined": walls.missing()}
    resource.setrlimit(resource.RLIMIT_DATA, (job["memory_bytes"], job["memory_bytes"]))
    try:
        import joblib

        estimator = joblib.load(artifact)
    except Exception as error:
        return {
            "error": f"it cannot be unpickled: {_short(error)}; convert it with the libraries that it was made with"
        }
    if not callable(getattr(estimator, "predict", None)):
        return {"error": f"it holds {_name_of(estimator)}, which has no predict; pickle the fitted estimator"}
    described = {"estimator": _name_of(estimator), "libraries": _libraries(), "walls": [*walls.network, *walls.files]}
    try:
        expected = _answers(estimator, _rows(estimator))
    except Exception as error:
        return {"error": f"{described['estimator']} cannot be asked: {_short(error)}; give rows with --sample"}
    import numpy

    numpy.savez("expected.npz", **expected)
    written: list[str] = []
    refused: dict[str, str] = {}
    for target, write in _WRITERS.items():
        try:
            why = write(estimator)
        except Exception as error:
            why = _short(error)
        if why:
            refused[target] = why
        else:
            written.append(target)
    return {
        **described,
        "written": written,
        "refused": {target: why for target, why in refused.items() if why != _OTHER},
    }


def _rows(estimator: Any) -> Any:
    """What is compared on, written down for the other side: the given rows, or some of many magnitudes."""
    import numpy as np

    if Path("sample.npy").exists():
        rows = np.load("sample.npy", allow_pickle=False)
    else:
        columns = getattr(estimator, "n_features_in_", None) or getattr(estimator, "num_features", None)
        columns = columns() if callable(columns) else columns
        if not columns:
            raise ValueError("it does not say how many columns it takes")
        random = np.random.default_rng(0)
        scales = np.repeat([0.0, 0.1, 1.0, 10.0, 1000.0], _ROWS // 5 + 1)[:_ROWS, None]
        rows = random.normal(size=(_ROWS, int(columns))) * scales
        rows[::7] = np.round(np.abs(rows[::7]))
        # What FP32 cannot hold is no question about the model.
        rows = rows.astype(np.float32).astype(np.float64)
    np.save("rows.npy", rows, allow_pickle=False)
    return rows


def _answers(estimator: Any, rows: Any) -> dict[str, Any]:
    import numpy as np

    if _is_from(estimator, "xgboost", "Booster"):
        import xgboost

        return {"predict": np.asarray(estimator.predict(xgboost.DMatrix(rows)))}
    found = {"predict": np.asarray(estimator.predict(rows))}
    if callable(getattr(estimator, "predict_proba", None)):
        probabilities = estimator.predict_proba(rows)
        if isinstance(probabilities, np.ndarray):
            found["predict_proba"] = probabilities
    if found["predict"].dtype == np.object_:
        found["predict"] = found["predict"].astype(str)
    return found


_OTHER = "of another framework"


def _write_xgboost(estimator: Any) -> str:
    if not _is_from(estimator, "xgboost"):
        return _OTHER
    estimator.save_model("model.ubj")  # of a wrapper, which says there what its answers mean
    return ""


def _write_lightgbm(estimator: Any) -> str:
    if not _is_from(estimator, "lightgbm"):
        return _OTHER
    booster = getattr(estimator, "booster_", estimator)
    booster.save_model("model.txt")
    return ""


def _write_skops(estimator: Any) -> str:
    if _is_from(estimator, "xgboost") or _is_from(estimator, "lightgbm"):
        return _OTHER
    import skops.io

    skops.io.dump(estimator, "model.skops")
    return ""


def _write_onnx(estimator: Any) -> str:
    if _is_from(estimator, "xgboost") or _is_from(estimator, "lightgbm"):
        return _OTHER  # its framework's own file is exact
    try:
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ModuleNotFoundError:
        return "skl2onnx is not installed: pip install 'hexcomb[convert]'"
    options = {"zipmap": False} if callable(getattr(estimator, "predict_proba", None)) else {}
    columns = int(estimator.n_features_in_)
    model = to_onnx(
        estimator, initial_types=[("input", FloatTensorType([None, columns]))], options={id(estimator): options}
    )
    Path("model.onnx").write_bytes(model.SerializeToString())
    return ""


_WRITERS: dict[str, Callable[[Any], str]] = {
    "xgboost": _write_xgboost,
    "lightgbm": _write_lightgbm,
    "sklearn": _write_skops,
    "onnx": _write_onnx,
}


def _is_from(estimator: Any, package: str, name: str = "") -> bool:
    of = type(estimator)
    return of.__module__.partition(".")[0] == package and name in ("", of.__name__)


def _name_of(estimator: Any) -> str:
    of = type(estimator)
    steps = ", ".join(type(step).__name__ for _, step in getattr(estimator, "steps", ()))
    return f"{of.__module__.partition('.')[0]} {of.__name__}" + (f" ({steps})" if steps else "")


def _libraries() -> str:
    known = ("sklearn", "xgboost", "lightgbm", "numpy")
    return ", ".join(f"{name} {sys.modules[name].__version__}" for name in known if name in sys.modules)


def _short(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _SHORT_CHARACTERS else text[:_SHORT_CHARACTERS] + "..."


if __name__ == "__main__":
    report = main(json.loads(sys.argv[1]))
    Path("report.json").write_text(json.dumps(report))
