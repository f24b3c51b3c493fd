"""How many threads a framework's own pools may have: said in the environment, before any of them is loaded.

A pod runs as many models at a time as it has cores. A matrix library or an OpenMP loop that takes all cores for each of
those runs makes them wait for one another. Most frameworks are told at each load or run (`nthread`, `n_jobs`, intra-op
threads); what they call underneath (OpenBLAS below NumPy and scikit-learn, OpenMP below torch) reads these variables,
once, when it is loaded. Its own functions would not do: they set the number for the thread that calls them.
"""

from __future__ import annotations

import os

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def limit_framework_threads(threads: int) -> None:
    """For this process, from now on; call before NumPy is imported. What an operator has set stays."""
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, str(threads))
