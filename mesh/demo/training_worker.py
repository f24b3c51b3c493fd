"""A worker process of the demo's training: a recipe in on each line of stdin, a trained model out on each of stdout.

Training stays out of the server's process and out of the command's, so that neither the memory that the demo
measures nor the time that `hexcomb` takes to start has anything to do with it. The worker ends with its stdin, so
none outlives the demo. The cache directory is the one argument.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

from mesh.demo.recipes import Recipe

ONE_THREAD_EACH = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Set to 1 in the environment: the workers are the parallelism, and answers must not depend on a thread count."""


def recipe_to_line(recipe: Recipe) -> str:
    """One line of JSON, for a worker's stdin."""
    return json.dumps(dataclasses.asdict(recipe)) + "\n"


def recipe_from_line(line: str) -> Recipe:
    """The inverse of `recipe_to_line`."""
    value = json.loads(line)
    return Recipe(**{**value, "features": tuple(value["features"])})


def main() -> None:
    """Train until stdin ends."""
    # Frameworks print to stdout when they like; the answers go where only we write.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from mesh.demo.training import train_cached

    cache = Path(sys.argv[1])
    for line in sys.stdin:
        recipe = recipe_from_line(line)
        try:
            answer: dict[str, object] = {"trained": train_cached(recipe, cache).to_json()}
        except Exception as error:
            answer = {"failed": f"{recipe.name}: {type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
