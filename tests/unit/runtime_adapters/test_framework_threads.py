"""A framework's own thread pools have as many threads as a model run may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from runtime_adapters.framework_threads import THREAD_VARIABLES

_THREADS_OF_A_PRODUCT = """
import os, sys
import mesh.cli.serve, mesh.settings
from runtime_adapters.framework_threads import limit_framework_threads

assert "numpy" not in sys.modules, "it has read its environment already"
limit_framework_threads({threads})
import numpy

matrix = numpy.ones((512, 512))
before = len(os.listdir("/proc/self/task"))
matrix @ matrix
print(os.environ["OMP_NUM_THREADS"], before, len(os.listdir("/proc/self/task")))
"""


def numbers(threads: int, **environment: str) -> list[int]:
    clean = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    program = _THREADS_OF_A_PRODUCT.format(threads=threads)
    done = subprocess.run(
        [sys.executable, "-c", program], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_a_matrix_product_of_a_pod_takes_one_thread() -> None:
    assert numbers(1) == [1, 1, 1]


@pytest.mark.parametrize(("threads", "environment", "said"), [(3, {}, 3), (3, {"OMP_NUM_THREADS": "2"}, 2)])
def test_more_threads_are_allowed_where_the_operator_says_so(
    threads: int, environment: dict[str, str], said: int
) -> None:
    assert numbers(threads, **environment)[0] == said
