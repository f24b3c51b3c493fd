"""One bench in a process of its own, and what it says while it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_STDERR_SHOWN_CHARACTERS = 1500


class BenchFailed(Exception):
    """It ended with an error; the message holds the end of what it wrote."""


def said_by(name: str, cache_dir: Path, *, quick: bool) -> Generator[dict[str, Any], None, None]:
    """What `Reporter` says, line by line. Raises BenchFailed at the end; whoever stops to listen ends the bench."""
    command = [sys.executable, "-m", "tests.bench.worker", name, str(cache_dir), *(["quick"] if quick else [])]
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            stderr.seek(0)
            raise BenchFailed(stderr.read()[-_STDERR_SHOWN_CHARACTERS:].strip())
