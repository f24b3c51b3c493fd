"""Which file of a directory is the model: Triton's, MLServer's, MLflow's and KServe's layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime_adapters.errors import BadArtifact
from runtime_adapters.layouts import Found, find_model

FIL = """
name: "churn"
backend: "fil"
max_batch_size: 32768
input [ { name: "input__0" data_type: TYPE_FP32 dims: [ 4 ] } ]
parameters [
  { key: "model_type" value: { string_value: "xgboost_ubj" } },
  { key: "predict_proba" value: { string_value: "true" } }
]
"""
SKLEARN_SETTINGS = json.dumps(
    {"name": "m", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "./model.joblib"}}
)


def settings(implementation: str, **parameters: str) -> str:
    return json.dumps({"name": "m", "implementation": implementation, "parameters": parameters})


def mlmodel(flavours: str) -> str:
    return "artifact_path: model\nflavors:\n" + flavours + "  python_function:\n    loader_module: mlflow.x\n"


LAYOUTS: list[tuple[str, dict[str, str], Found]] = [
    ("a directory around one file", {"m.onnx": ""}, Found()),
    ("a custom model", {"model.py": "", "1/model.onnx": "", "model.onnx": ""}, Found()),
    ("KServe: pickled scikit-learn", {"model.joblib": "", "requirements.txt": ""}, Found("model.joblib", ("pickle",))),
    ("KServe: a booster that only its content tells", {"model.bst": "", "README.md": ""}, Found("model.bst")),
    ("KServe: ONNX beside its weights", {"model.onnx": "", "weights.bin": ""}, Found()),
    (
        "MLServer: scikit-learn",
        {"model-settings.json": SKLEARN_SETTINGS, "model.joblib": ""},
        Found("model.joblib", ("pickle",)),
    ),
    (
        "MLServer: skops",
        {"model-settings.json": settings("mlserver_sklearn.SKLearnModel", uri="m.skops"), "m.skops": ""},
        Found("m.skops", ("sklearn",)),
    ),
    (
        "MLServer: the file goes without saying",
        {"model-settings.json": settings("mlserver_xgboost.XGBoostModel"), "model.bst": ""},
        Found("model.bst", ("xgboost",)),
    ),
    (
        "MLServer: LightGBM",
        {"model-settings.json": settings("mlserver_lightgbm.LightGBMModel", uri="./d/model.bst"), "d/model.bst": ""},
        Found("d/model.bst", ("lightgbm",)),
    ),
    (
        "MLServer around MLflow",
        {
            "model-settings.json": settings("mlserver_mlflow.MLflowRuntime", uri="./logged"),
            "logged/MLmodel": mlmodel("  onnx:\n    data: model.onnx\n"),
            "logged/model.onnx": "",
        },
        Found("logged/model.onnx", ("onnx",)),
    ),
    (
        "MLflow: scikit-learn",
        {"MLmodel": mlmodel("  sklearn:\n    pickled_model: model.pkl\n"), "model.pkl": "", "conda.yaml": ""},
        Found("model.pkl", ("pickle",)),
    ),
    (
        "MLflow: XGBoost",
        {"MLmodel": mlmodel("  xgboost:\n    data: model.xgb\n"), "model.xgb": "", "requirements.txt": ""},
        Found("model.xgb", ("xgboost",)),
    ),
    (
        "MLflow: LightGBM's wrapper for scikit-learn",
        {"MLmodel": mlmodel("  lightgbm:\n    data: model.pkl\n"), "model.pkl": ""},
        Found("model.pkl", ("pickle",)),
    ),
    (
        "Triton: ONNX, the highest version, with its weights",
        {
            "config.pbtxt": 'platform: "onnxruntime_onnx"',
            "1/model.onnx": "",
            "10/model.onnx": "",
            "10/w.bin": "",
            "9/x": "",
        },
        Found("10", ("onnx",)),
    ),
    ("Triton without a configuration", {"1/model.onnx": "", "2/model.onnx": ""}, Found("2", ("onnx",))),
    (
        "Triton: another file name",
        {"config.pbtxt": "backend: 'onnxruntime' # x\ndefault_model_filename: \"net.onnx\"", "1/net.onnx": ""},
        Found("1/net.onnx", ("onnx",)),
    ),
    ("Triton: trees", {"config.pbtxt": FIL, "1/xgboost.ubj": ""}, Found("1/xgboost.ubj", ("xgboost",))),
    (
        "Triton: torch.export",
        {"config.pbtxt": 'backend: "pytorch"', "1/model.pt2": ""},
        Found("1/model.pt2", ("torch",)),
    ),
]


def written(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


@pytest.mark.parametrize(("files", "found"), [case[1:] for case in LAYOUTS], ids=[case[0] for case in LAYOUTS])
def test_a_layout_says_which_file_is_the_model(files: dict[str, str], found: Found, tmp_path: Path) -> None:
    assert find_model(written(tmp_path / "m", files)) == found


REFUSED: list[tuple[str, dict[str, str], str]] = [
    ("an unserved implementation", {"model-settings.json": settings("mlserver_alibi.Explainer")}, "mlserver_sklearn"),
    (
        "a path that climbs",
        {"model-settings.json": settings("mlserver_sklearn.SKLearnModel", uri="../m.pkl")},
        "inside",
    ),
    ("a path that is absolute", {"MLmodel": mlmodel("  onnx:\n    data: /etc/passwd\n")}, "inside"),
    ("a file that is not there", {"MLmodel": mlmodel("  onnx:\n    data: m.onnx\n"), "x": ""}, "found MLmodel, x"),
    ("a flavour that is not read", {"MLmodel": mlmodel("  pytorch:\n    model_data: data\n")}, "pytorch"),
    ("no mapping", {"MLmodel": "- 1"}, "cannot be read"),
    ("a broken file", {"model-settings.json": "{"}, "cannot be read"),
    ("Triton's Python backend", {"config.pbtxt": 'backend: "python"', "1/model.py": ""}, "'python' is not served"),
    ("Triton's TensorFlow", {"config.pbtxt": 'platform: "tensorflow_savedmodel"', "1/x": ""}, "onnxruntime_onnx"),
    ("no version", {"config.pbtxt": 'platform: "onnxruntime_onnx"'}, "directory `1`"),
    (
        "a version without its file",
        {"config.pbtxt": 'platform: "onnxruntime_onnx"', "1/a": ""},
        "holds a; .* wants model.onnx",
    ),
    ("an unknown version", {"1/a": "", "1/b": ""}, "version 1 holds a, b"),
    (
        "a file name that climbs",
        {"config.pbtxt": 'backend: "onnxruntime" default_model_filename: "../a"', "1/x": ""},
        "inside",
    ),
    ("a SavedModel", {"saved_model.pb": "", "variables/x": ""}, "TensorFlow SavedModel"),
    ("a TorchServe archive", {"config/x": "", "model-store/m.mar": ""}, "TorchServe"),
    ("PMML", {"m.pmml": "", "x": ""}, "PMML"),
]


@pytest.mark.parametrize(("files", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_not_read_is_named_with_what_is(files: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match=says):
        find_model(written(tmp_path / "m", files))


def test_a_declared_format_must_be_the_layouts(tmp_path: Path) -> None:
    directory = written(tmp_path / "m", {"model-settings.json": SKLEARN_SETTINGS, "model.joblib": ""})
    assert find_model(directory, "pickle") == Found("model.joblib", ("pickle",))
    with pytest.raises(BadArtifact, match=r"says pickle .*registration says sklearn; .*hexcomb convert"):
        find_model(directory, "sklearn")


def test_what_another_server_runs_keeps_its_layout(tmp_path: Path) -> None:
    files = {"config.pbtxt": 'platform: "tensorflow_savedmodel"', "1/model.savedmodel/saved_model.pb": ""}
    assert find_model(written(tmp_path / "m", files), "triton") == Found("", ("triton",))


def test_a_file_is_its_own_layout(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("")
    assert find_model(tmp_path / "MLmodel") == Found()
    assert find_model(tmp_path / "MLmodel", "onnx") == Found("", ("onnx",))


def test_a_yaml_that_grows_when_it_is_read_is_refused(tmp_path: Path) -> None:
    grown = (f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 20))
    (tmp_path / "MLmodel").write_text("\n".join(("a0: &a0 {x: 1}", *grown)))
    with pytest.raises(BadArtifact, match="cannot be read"):
        find_model(tmp_path)


def test_a_description_of_spaces_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "xgboost.model").touch()
    (tmp_path / "config.pbtxt").write_text('backend: "fil"\nparameters { key: "model_type"' + " " * 1_000_000 + "}")
    assert find_model(tmp_path) == Found("1/xgboost.model", ("xgboost",))
