"""Pickles become files that are safe to load: exact where the framework has its own form, compared always, jailed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mesh.cli.main import cli
from runtime_adapters.base import LoadOptions
from runtime_adapters.converting import TARGETS, Conversion, ConversionLimits, convert
from runtime_adapters.errors import AdapterError, BadArtifact, LoadFailed, UntrustedArtifact
from runtime_adapters.registry import adapter_for

joblib = pytest.importorskip("joblib")
datasets = pytest.importorskip("sklearn.datasets")


class RunsACommand:
    """When it is unpickled, its code runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class WritesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


class NeverEnds:
    def __reduce__(self) -> Any:
        return max, (iter(int, 1),)


class LeavesALink:
    """In place of what the other side reads."""

    def __reduce__(self) -> Any:
        return os.symlink, ("/etc/passwd", "report.json")


def converted(estimator: Any, directory: Path, **options: Any) -> tuple[Conversion, Path]:
    source = directory / "m.joblib"
    joblib.dump(estimator, source)
    try:
        made = convert(source, lambda name: directory / TARGETS[name], **options)
    except UntrustedArtifact as error:
        pytest.skip(f"this kernel gives no jail: {error}")
    return made, directory / TARGETS[made.format]


def pipeline() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression()).fit(*datasets.load_iris(return_X_y=True))


def classifier() -> Any:
    xgboost = pytest.importorskip("xgboost")
    return xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(*datasets.load_iris(return_X_y=True))


def regressor() -> Any:
    lightgbm = pytest.importorskip("lightgbm")
    return lightgbm.LGBMRegressor(n_estimators=5, n_jobs=1, verbose=-1).fit(*datasets.load_iris(return_X_y=True))


@pytest.mark.parametrize(
    ("make", "format_name", "outputs"),
    [
        (pipeline, "sklearn", {"predict", "predict_proba"}),
        (classifier, "xgboost", {"predict", "predict_proba"}),
        (regressor, "lightgbm", {"predict"}),
    ],
    ids=["scikit-learn", "XGBoost", "LightGBM"],
)
def test_a_framework_with_a_safe_form_of_its_own_is_converted_to_it(
    make: Any, format_name: str, outputs: set[str], tmp_path: Path
) -> None:
    estimator = make()
    made, path = converted(estimator, tmp_path)
    assert (made.format, made.rows_are_given) == (format_name, False)
    assert made.confined_by
    assert {one.output for one in made.agreements} == outputs
    assert all(one.rows == 256 and one.largest_difference < 1e-6 for one in made.agreements)
    rows = datasets.load_iris(return_X_y=True)[0].astype(np.float32)
    model = adapter_for(format_name).load(path, LoadOptions("m"))
    given = model.metadata.inputs[0]
    answer = model.infer({given.name: rows if format_name == "xgboost" else rows.astype(np.float64)})
    np.testing.assert_array_equal(answer["predict"].ravel(), estimator.predict(rows.astype(np.float64)))


def test_onnx_is_made_where_it_is_asked_for_and_compared_on_the_given_rows(tmp_path: Path) -> None:
    rows = datasets.load_iris(return_X_y=True)[0]
    made, path = converted(pipeline(), tmp_path, targets=("onnx",), sample=rows)
    assert (made.format, made.rows_are_given, path.name) == ("onnx", True, "model.onnx")
    by_name = {one.output: one for one in made.agreements}
    assert (by_name["predict"].rows, by_name["predict"].unequal_rows) == (150, 0)
    assert 0 < by_name["predict_proba"].largest_difference < 1e-5


def test_what_does_not_agree_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match=r"predict_proba differs in .* 0 is allowed"):
        converted(pipeline(), tmp_path, targets=("onnx",), tolerance=0.0)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("make", [RunsACommand, WritesAFile], ids=["runs a command", "writes a file"])
def test_code_in_a_pickle_reaches_nothing(make: Any, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match=r"no predict|cannot be unpickled"):
        converted(make(tmp_path / "touched"), tmp_path)
    assert not (tmp_path / "touched").exists()


def test_a_link_in_place_of_an_answer_is_not_followed(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact) as caught:
        converted(LeavesALink(), tmp_path)
    assert "root:" not in str(caught.value)


def test_code_that_never_ends_is_ended(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="longer than 3 s"):
        converted(NeverEnds(), tmp_path, limits=ConversionLimits(timeout_s=3.0))


def test_a_file_that_is_no_pickle_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.joblib").write_bytes(b"no pickle at all")
    with pytest.raises(AdapterError, match="cannot be unpickled"):
        convert(tmp_path / "m.joblib", lambda name: tmp_path / TARGETS[name], jailed=False)


def test_a_skops_file_needs_no_conversion(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.skops", "w") as archive:
        archive.writestr("schema.json", "{}")
    with pytest.raises(BadArtifact, match=r"m\.skops is a ZIP archive.* and no pickle; register it as it is"):
        convert(tmp_path / "m.skops", lambda name: tmp_path / TARGETS[name], jailed=False)


def test_the_command_reports_and_overwrites_nothing(tmp_path: Path) -> None:
    source = tmp_path / "m.pkl"
    source.write_bytes(pickle.dumps(pipeline()))
    command = ["convert", str(source), "--no-jail", "--json"]
    ran = CliRunner().invoke(cli, command)
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.output)
    assert (report["format"], report["path"], report["confined_by"]) == ("sklearn", str(tmp_path / "m.skops"), [])
    assert report["agreements"][0] == {"output": "predict", "rows": 256, "unequal_rows": 0, "largest_difference": 0.0}
    again = CliRunner().invoke(cli, command)
    assert again.exit_code != 0
    assert "is there already" in str(again.exception)
