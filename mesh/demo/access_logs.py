"""Where the demo's pods write down who was asked for when (`mesh.access_log`), for `hexcomb plan`.

One pod writes the file that was named. The pods of a pool write one each, beside it and named after them, since each
knows only what it answered: `demo.csv` becomes `demo-pod-0.csv`, `demo-pod-1.csv`, ...

Files are begun anew: two runs in one log would be one trace with a hole. The requests by which the demo measures its
baseline are taken out at the end, because no user made them and their models are gone.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

BASELINE = "baseline-"
"""How the names of models begin that only the measurement of the baseline asks for."""


def access_log_paths(named: Path, pods: Sequence[str]) -> list[Path]:
    """The file of each pod. A single pod without a name has the named one."""
    return [named.with_name(f"{named.stem}-{pod}{named.suffix}") if pod else named for pod in pods]


def begin_anew(paths: Sequence[Path]) -> None:
    """Take away what an earlier run left, and make the directory. Raises OSError."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch()


def take_out_baseline(paths: Sequence[Path]) -> None:
    """Leave the requests that the demo counts."""
    for path in paths:
        rest = path.with_name(path.name + ".rest")
        with path.open(encoding="utf-8", newline="") as file, rest.open("w", encoding="utf-8", newline="") as kept:
            rows = csv.reader(file)
            writer = csv.writer(kept, lineterminator="\n")
            columns = next(rows, [])
            writer.writerow(columns)
            model = columns.index("model") if "model" in columns else 0
            writer.writerows(row for row in rows if row and not row[model].startswith(BASELINE))
        os.replace(rest, path)
