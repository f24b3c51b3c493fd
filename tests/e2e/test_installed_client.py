"""Hexcomb's wheel as a client alone: five libraries beside it, none that serves; its types; pandas; the README.

An environment of its own, since pandas must not come into the one that pods are tested in: XGBoost and LightGBM import
it where it is, which is another 50 MB in every pod.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.peers.environments import python_of

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BESIDE = Path(__file__).parent / "installed_client"
OF_A_CLIENT = ("cachetools>=6.0", "grpcio>=1.84", "ml-dtypes>=0.5", "numpy>=2.0", "protobuf>=6.30")
"""What `mesh/README.md` says that a client needs."""
OF_ITS_TESTS = ("pandas==3.1.1", "xgboost-cpu==3.2.0", "mypy~=2.4.1", "pytest>=8.3", "types-protobuf")
TIMEOUT_S = 300

COLUMNS = """
from runtime_adapters.custom import Model, TensorSpec

TYPES = {"flag": "BOOL", "count": "INT64", "word": "BYTES", "kind": "BYTES", "weight": "FP32"}


class Columns(Model):
    inputs = tuple(TensorSpec(name, datatype, (-1,)) for name, datatype in TYPES.items())
    outputs = tuple(TensorSpec(name + "_out", datatype, (-1,)) for name, datatype in TYPES.items())

    def predict(self, inputs):
        return {name + "_out": value for name, value in inputs.items()}
"""

_THIN = """
import json, sys, time
began = time.perf_counter()
import mesh.client
took_s = time.perf_counter() - began
alone = sorted(sys.modules)
import numpy
with mesh.client.Client(sys.argv[1]) as client:
    y = client.infer("scale", {"x": numpy.ones((1, 4), "float32")})
    ids = [model.id for model in client.list_models()]
print(json.dumps({"alone": alone, "used": sorted(sys.modules), "y": y.outputs["y"].tolist(), "ids": ids,
                  "file": mesh.__file__, "took_s": took_s}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel of this tree, installed without what it depends on."""
    python = python_of(ROOT / ".cache" / "clients", "installed-client", (*OF_A_CLIENT, *OF_ITS_TESTS), ())
    directory = tmp_path_factory.mktemp("wheel")
    tree = directory / "tree"  # a build leaves files where it builds
    tree.mkdir()
    for package in ("mesh", "placement", "cache", "runtime_adapters"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    _run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, tree)
    (wheel,) = directory.glob("hexcomb-*.whl")
    _run(*pip, "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    return python


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with pod.client() as client:
        client.register("scale", uri=files.scale().uri)
        client.register("iris", uri=files.iris().uri)
        client.register("churn", uri=files.xgboost().uri)
        client.register("columns", uri=files.python(COLUMNS, "columns").as_uri(), format="python")
    return pod


def _run(*command: object, cwd: Path | None = None, **more: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stdout[-8000:]
    return ran.stdout


def test_it_asks_and_manages_with_five_libraries_beside_it(python: Path, pod: Pod, tmp_path: Path) -> None:
    found = json.loads(_run(python, "-P", "-c", _THIN, pod.target, cwd=tmp_path))
    assert found["y"] == [[2, 2, 2, 2]]
    assert {"scale", "iris"} <= set(found["ids"])
    assert str(ROOT / "mesh") not in found["file"]
    others = {
        "grpc",
        "pandas",
        "onnxruntime",
        "xgboost",
        "torch",
        "sklearn",
        "starlette",
        "uvicorn",
        "pydantic",
        "rich",
    }
    assert others & set(found["alone"]) == set(), "importing the client brought them along"
    assert others & set(found["used"]) == {"grpc"}
    ours = {name for name in found["used"] if name.split(".")[0] in ("mesh", "placement", "cache", "runtime_adapters")}
    assert not [name for name in ours if name.startswith(("mesh.node", "mesh.endpoint", "placement", "cache"))]
    print(f"importing mesh.client: {found['took_s']:.3f} s, {len(found['alone'])} modules")  # noqa: T201


def test_its_types_satisfy_a_strict_checker(python: Path, tmp_path: Path) -> None:
    shutil.copy(BESIDE / "typed.py", tmp_path)
    said = _run(python, "-P", "-m", "mypy", "--strict", "typed.py", cwd=tmp_path)
    assert "no issues found" in said


def test_frames_go_in_and_out(python: Path, pod: Pod, files: ModelFiles, tmp_path: Path) -> None:
    shutil.copy(BESIDE / "frames.py", tmp_path)
    churn = files.xgboost()
    rows = tmp_path / "rows.csv"
    lines = [",".join(f"f{place}" for place in range(6))]
    lines += [",".join(repr(float(value)) for value in row) for row in churn.inputs["input"]]
    rows.write_text("\n".join(lines) + "\n")
    said = _run(
        python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "frames.py",
        cwd=tmp_path,
        HEXCOMB_TEST_TARGET=pod.target, HEXCOMB_TEST_ROWS=str(rows), HEXCOMB_TEST_MODEL=str(churn.path),
    )  # fmt: skip
    assert " passed" in said
    assert "skipped" not in said


def test_the_readmes_example_of_frames_runs_as_it_stands(python: Path, pod: Pod, tmp_path: Path) -> None:
    found = re.search(r"<!-- run pandas -->\n```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    assert found is not None
    assert "predict_proba_2" in _run(python, "-P", "-c", found[1].replace("8033", str(pod.grpc_port)), cwd=tmp_path)
