"""`make test` runs two parts side by side; together they pass or fail as one run of all tests would."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PASSED, FAILED, NONE_SELECTED = 0, 1, 5
_PYTHON = """#!/bin/sh
case "$*" in *tests/e2e*) exit {of_pods};; *) exit {beside};; esac
"""


def make_test(venv: Path, of_pods: int, beside: int, arguments: str) -> int:
    """The exit status of `make test` where the two parts end with these."""
    programs = venv / "bin"
    programs.mkdir()
    for name, source in (
        ("python", _PYTHON.format(of_pods=of_pods, beside=beside)),
        *((name, "#!/bin/sh\n") for name in ("ruff", "mypy", "lint-imports")),
    ):
        (programs / name).write_text(source)
        (programs / name).chmod(0o755)
    (venv / ".installed-test").touch()
    command = ["make", "-s", "test", f"VENV={venv}", f"PYTEST_ARGS={arguments}"]
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # of the run that this test is a part of
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60).returncode


@pytest.mark.parametrize(
    ("of_pods", "beside", "arguments", "passes"),
    [
        (PASSED, PASSED, "", True),
        (PASSED, FAILED, "", False),
        (FAILED, PASSED, "", False),
        (PASSED, NONE_SELECTED, "", False),
        (NONE_SELECTED, PASSED, "", False),
        (PASSED, NONE_SELECTED, "-k 'one of pods'", True),
        (NONE_SELECTED, PASSED, "-k beside", True),
        (NONE_SELECTED, FAILED, "-k beside", False),
        (NONE_SELECTED, NONE_SELECTED, "-k neither", False),
    ],
)
def test_what_is_asked_for_may_lie_in_one_part_alone(
    tmp_path: Path, of_pods: int, beside: int, arguments: str, passes: bool
) -> None:
    assert (make_test(tmp_path, of_pods, beside, arguments) == 0) is passes
