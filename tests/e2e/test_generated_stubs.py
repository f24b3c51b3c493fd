"""Stubs that a user generates from the protos, in an environment without anything of ours: the README's example."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.peers.environments import python_of

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ("grpcio-tools==1.72.2", "setuptools<81")
BLOCK = re.compile(r"<!-- run stubs -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
TIMEOUT_S = 120


def test_the_example_of_the_readme_runs_as_it_stands(start_pod: StartPod, files: ModelFiles, tmp_path: Path) -> None:
    python = python_of(ROOT / ".cache" / "clients", "stubs", REQUIREMENTS, ())
    pod = start_pod()
    (tmp_path / "models").mkdir()
    shutil.copy(files.iris().path, tmp_path / "models" / "iris.skops")
    shutil.copytree(ROOT / "mesh" / "wire" / "protos", tmp_path / "mesh" / "wire" / "protos")
    lines = ["set -euo pipefail"]
    for block in BLOCK.finditer((ROOT / "README.md").read_text()):
        text = block["text"].replace("8033", str(pod.grpc_port))
        lines += [text] if block["language"] == "bash" else ["python3 - <<'END'", text, "END"]
    ran = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={"PATH": f"{python.parent}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stdout
    assert "status: LOADED" in ran.stdout
    assert ran.stdout.strip().endswith("iris-v7 predict (0,)")
