"""Packages of custom models, on real pods: from a directory of wheels, kept on the disk, apart from one another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mesh.client import Client, HexcombError
from tests.e2e.pools import ONE_TRY
from tests.wheels import make_wheel

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod

EXAMPLE = Path(__file__).parents[2] / "deploy/examples/custom-models/packages"
SPEAKER = """
import hexgreet
import numpy as np
from runtime_adapters.custom import Model, TensorSpec


class Speaker(Model):
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("said", "BYTES", (1,)), TensorSpec("from", "BYTES", (1,)))

    def predict(self, inputs):
        return {"said": np.array([hexgreet.WORDS], object), "from": np.array([hexgreet.__file__], object)}
"""
X = {"x": np.zeros(1, np.float32)}


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    directory = tmp_path / "wheels"
    directory.mkdir()
    for version in ("1.0", "2.0"):
        make_wheel(directory, "hexgreet", version, {"hexgreet.py": f"WORDS = 'hello from {version}'\n"})
    # Stands in for the one of that name and version on PyPI.
    make_wheel(directory, "roman", "5.0", {"roman.py": "def toRoman(number):\n    return 'I' * number\n"})
    return directory


def speaker(files: ModelFiles, name: str, requirements: str) -> str:
    path = files.python(SPEAKER, name)
    (path / "requirements.txt").write_text(requirements)
    return path.as_uri()


def said(client: Client, model: str) -> tuple[str, str]:
    outputs = client.infer(model, X).outputs
    return outputs["said"].item().decode(), outputs["from"].item().decode()


def refusal(client: Client, name: str, uri: str) -> str:
    client.register(name, uri=uri, format="python")
    with pytest.raises(HexcombError) as refused:
        client.infer(name, X)
    return str(refused.value)


def test_two_models_have_two_versions_of_a_package_and_equal_ones_share_it(
    start_pod: StartPod, files: ModelFiles, wheels: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "trusted_prefixes": f"{files.directory.as_uri()}/,{EXAMPLE.as_uri()}/",
        "package_links": str(wheels),
        "packages_size_max": "1MiB",
        "disk_capacity": "64MiB",
        "data_dir": tmp_path / "data",
    }
    pod = start_pod(**settings)
    with pod.client() as client:
        for name, wanted in (("old", "hexgreet<2"), ("new", "hexgreet==2.0"), ("newer", "# the same\nhexgreet == 2.0")):
            client.register(name, uri=speaker(files, name, wanted), format="python")
        client.register("numerals", uri=EXAMPLE.as_uri(), format="python")
        assert said(client, "old")[0] == "hello from 1.0"
        assert said(client, "new")[0] == "hello from 2.0"
        assert said(client, "newer") == said(client, "new")
        assert said(client, "old")[0] == "hello from 1.0"
        assert str(tmp_path / "data") in said(client, "old")[1]
        numbers = {"number": np.array([3, 1], np.int32)}
        assert client.infer("numerals", numbers).outputs["numeral"].tolist() == [b"III", b"I"]
    pod.stop()
    shutil.rmtree(wheels)  # what was installed is on the disk
    wheels.mkdir()
    with start_pod(**settings).client(retry=ONE_TRY) as client:
        assert said(client, "new")[0] == "hello from 2.0"
        told = refusal(client, "unknown", speaker(files, "unknown", "hexgreet==3.0"))
        assert "No matching distribution found for hexgreet==3.0" in told
        assert "line 1: '--index-url" in refusal(client, "strange", speaker(files, "strange", "--index-url x"))


def test_packages_are_installed_for_trusted_prefixes_and_where_the_operator_says_from_where(
    start_pod: StartPod, files: ModelFiles, wheels: Path, tmp_path: Path
) -> None:
    uri = speaker(files, "speaker", "hexgreet<2")
    with start_pod(data_dir=tmp_path / "one", package_links=str(wheels)).client(retry=ONE_TRY) as client:
        assert "hexgreet<2, and packages are installed for trusted prefixes only" in refusal(client, "speaker", uri)
    trusting = start_pod(data_dir=tmp_path / "other", trusted_prefixes=f"{files.directory.as_uri()}/")
    with trusting.client(retry=ONE_TRY) as client:
        assert "start it with --package-index or --package-links" in refusal(client, "speaker", uri)
        path = files.obedient()
        (path / "requirements.txt").write_text("numpy>=2.0\n")
        client.register("satisfied", uri=path.as_uri(), format="python")
        x = np.zeros((1, 2), np.float32)
        assert client.infer("satisfied", {"x": x}).outputs["y"].shape == (1, 2)
