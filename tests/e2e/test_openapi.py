"""What `/openapi.json` says is so: schemathesis makes requests of it, right and wrong ones, and judges every answer.

No answer is a server's error that is not announced, and all have the codes, types, headers and schemas that are. A few
cases for each operation here; `HEXCOMB_TEST_REST_EXAMPLES=150` makes more than 10,000 of them.

Three checks are left out. That whatever fits the schema is accepted: JSON Schema cannot say that data fit a shape, and
a shape the model. That other methods are 405: a model's name may hold slashes, so GET of `.../m/infer` asks for the
metadata of a model called `m/infer`. That what was deleted is gone: an unloaded model comes back when it is asked for.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

EXAMPLES = int(os.environ.get("HEXCOMB_TEST_REST_EXAMPLES", "3"))
SEED = int(os.environ.get("HEXCOMB_TEST_REST_SEED", "1"))
LEFT_OUT = "positive_data_acceptance,unsupported_method,use_after_free"
ANNOUNCED = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 501, 503, 504]
"""
"""Not built, not ready, too late: each only where the document says so, which another check sees to."""
NAMED = """
[parameters]
"path.model" = "{model}"
"""


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod(capacity="64MiB")
    with pod.client() as client:
        client.register("scale", uri=files.scale().uri)
        client.register("words", uri=files.words().uri)
        client.register("trees", uri=files.xgboost().uri)
    return pod


@pytest.mark.timeout(120 + 60 * EXAMPLES)
@pytest.mark.parametrize(
    ("model", "phases"),
    [("", "fuzzing"), ("scale", "coverage,fuzzing"), ("trees", "fuzzing")],
    ids=["any-name", "scale", "trees"],
)
def test_answers_are_what_the_document_says(pod: Pod, tmp_path: Path, model: str, phases: str) -> None:
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(ANNOUNCED + (NAMED.format(model=model) if model else ""))
    command = [Path(sys.executable).parent / "st", "--config-file", settings, "run", f"{pod.http}/openapi.json"]
    command += ["--phases", phases, "--max-examples", str(EXAMPLES), "--seed", str(SEED)]
    command += ["--exclude-checks", LEFT_OUT, "--continue-on-failure", "--suppress-health-check", "all", "--no-color"]
    command += ["--include-path-regex", "model}"] if model == "trees" else []
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    made = re.search(r"(\d+) generated", done.stdout)
    assert made, done.stdout[-2000:]
    assert int(made[1]) >= 10 * EXAMPLES
    sys.stdout.write(f"{made[1]} cases with {model or 'any name'}\n")


def test_none_of_them_was_a_defect(pod: Pod) -> None:
    log = pod.log_text()
    assert "incident" not in log
    assert " ERROR " not in log
    pod.wait_settled()
