"""NVIDIA's perf_analyzer, as the wheel of tritonclient 2.47.0 ships it, with the two libraries that it wants.

The wheel is not installed: it would replace the tritonclient of this environment. libcudart comes from NVIDIA's wheel,
libb64 from Debian.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from mesh.demo.debian_package import unpack_package

HOME = Path(__file__).parents[2] / ".cache" / "clients" / "perf_analyzer"
WHEELS = ("tritonclient==2.47.0", "nvidia-cuda-runtime-cu12==12.9.79")
RUN_TIMEOUT_S = 150


def installed() -> tuple[Path, Mapping[str, str]]:
    """The program, and the environment that it runs in; fetched the first time."""
    if not (HOME / "perf_analyzer").exists():
        HOME.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOME.parent) as scratch_name:
            _fetch(Path(scratch_name))
    return HOME / "perf_analyzer", {**os.environ, "LD_LIBRARY_PATH": str(HOME)}


def _fetch(scratch: Path) -> None:
    made = scratch / "made"
    made.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *WHEELS], check=True
    )
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            for name in packed.namelist():
                if name.endswith(("bin/perf_analyzer", "lib/libcudart.so.12")):
                    (made / Path(name).name).write_bytes(packed.read(name))
    (scratch / "debian").mkdir()
    for library in unpack_package("libb64-0d", scratch / "debian").rglob("libb64.so*"):
        shutil.copy(library, made)
    (made / "perf_analyzer").chmod(0o755)
    made.replace(HOME)


def analyze(model: str, protocol: str, address: str, *more: str) -> str:
    """What it prints of one short measurement. Fails with that when it did not run to completion."""
    program, environment = installed()
    measurement = ("--measurement-mode", "count_windows", "--measurement-request-count", "20")
    unhurried = ("--stability-percentage", "999", "--measurement-interval", "500")
    ran = subprocess.run(
        [program, "-m", model, "-i", protocol, "-u", address, "-v", *measurement, *unhurried, *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout
