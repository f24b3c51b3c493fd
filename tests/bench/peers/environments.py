"""Each peer's own virtual environment, made from the package index on first use and kept.

Peers want different versions of the same libraries, so none shares an environment with another or with this checkout.
An environment lies under a digest of what it holds: a changed pin makes a new one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

FRAMEWORKS = ("numpy", "onnxruntime==1.31.1", "xgboost-cpu==3.2.0")
"""xgboost-cpu is xgboost without 350 MB of NCCL."""
_OUTPUT_SHOWN_CHARACTERS = 1500


class CannotInstall(Exception):
    """A peer could not be installed; the message says why."""


def python_of(home: Path, name: str, requirements: Sequence[str], frameworks: Sequence[str] = FRAMEWORKS) -> Path:
    """The interpreter of that environment, made if need be. Raises CannotInstall."""
    wanted = "\n".join((sys.version, *requirements, *frameworks))
    into = home / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:10]}"
    made = into / ".made"
    if not made.exists():
        for stale in home.glob(f"{name}-*"):
            shutil.rmtree(stale)
        venv.create(into, with_pip=True)
        done = subprocess.run(
            [into / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements, *frameworks],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            shutil.rmtree(into)
            raise CannotInstall(f"pip install {' '.join(requirements)}: {done.stdout[-_OUTPUT_SHOWN_CHARACTERS:]}")
        made.touch()
    return into / "bin" / "python"
