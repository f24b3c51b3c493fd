"""Directories as Triton, MLServer, MLflow and KServe have them, registered as they stand on a real pod."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesh.client.errors import HexcombError

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod


def test_each_layout_serves_and_comes_back_after_an_eviction(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    graph, trees = files.scale(2.0), files.xgboost()
    triton, mlserver, mlflow, kserve = (tmp_path / name for name in ("triton", "mlserver", "mlflow", "kserve"))
    for version in ("1", "2"):
        (triton / version).mkdir(parents=True)
        shutil.copy(graph.path, triton / version / "model.onnx")
    (triton / "config.pbtxt").write_text('name: "any"\nplatform: "onnxruntime_onnx"\n')
    for directory, name in ((mlserver, "trees.json"), (mlflow, "model.json"), (kserve, "model.json")):
        directory.mkdir()
        shutil.copy(trees.path, directory / name)
        (directory / "requirements.txt").write_text("xgboost")
    settings = {"implementation": "mlserver_xgboost.XGBoostModel", "parameters": {"uri": "./trees.json"}}
    (mlserver / "model-settings.json").write_text(json.dumps(settings))
    (mlflow / "MLmodel").write_text("flavors:\n  xgboost:\n    data: model.json\n    xgb_version: 3.2.0\n")
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "m.keras").write_text("x")

    pod = start_pod()
    with pod.client() as client:
        for directory, example in ((triton, graph), (mlserver, trees), (mlflow, trees), (kserve, trees)):
            client.register(directory.name, uri=str(directory))
            for _ in range(2):
                answer = client.infer(directory.name, example.inputs)
                for output in answer.outputs:
                    np.testing.assert_array_equal(answer.outputs[output], example.expected[output])
                unload = f"{pod.http}/v2/repository/models/{directory.name}/unload"
                urllib.request.urlopen(urllib.request.Request(unload, b"{}"), timeout=20).close()
        client.register("keras", uri=str(tmp_path / "keras"))
        with pytest.raises(HexcombError, match="a Keras model"):
            client.infer("keras", trees.inputs)
