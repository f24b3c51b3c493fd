"""The suite against the servers that people use, each started here with the suite's models.

    python -m tests.conformance.peers                                      all; prints what was found
    python -m tests.conformance.peers --write-readme                       ... and puts it into README.md, RESULTS.md
    python -m tests.conformance.peers triton --case rest.refuse:no-body    one case of one server

Environments are those of `make bench-peers`: made under .cache the first time (MLServer, the KServe SDK and Triton from
PyPI), and kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conformance.peers.starting import LAUNCHES, ROOT, requirements_of, running
from tests.conformance.report import Report, counts_table, deviations_tables

SUITE = Path(__file__).parents[1]
README, RESULTS = SUITE / "README.md", SUITE / "RESULTS.md"
RESULTS_HEAD = """# Deviations, by server

Written by `python -m tests.conformance.peers --write-readme`. What a case says stands in its docstring; a deviation is
shown again by `python -m tests.conformance.peers SERVER --case CASE`.
"""
MODELS = Path(__file__).parent / "models.json"
"""Without BF16, which neither MLServer nor KServe has, nor NumPy in Triton's Python backend."""
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def main() -> int:
    """The exit code: 0 where every server could be tried, whatever came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("servers", nargs="*", metavar="NAME", help=f"of {', '.join(LAUNCHES)}; none: all")
    parser.add_argument("--case", help="only cases whose id begins so")
    parser.add_argument("--write-readme", action="store_true")
    given = parser.parse_args()
    if unknown := [name for name in given.servers if name not in LAUNCHES]:
        parser.error(f"no server is called {unknown[0]}")
    reports = {}
    for name in given.servers or LAUNCHES:
        with tempfile.TemporaryDirectory(prefix=f"conformance-{name}-") as directory:
            reports[name] = _try(name, Path(directory), given.case)
        sys.stdout.write(f"{name}\n{reports[name].as_text()}\n\n")
    titled = {_titled(name): report for name, report in reports.items()}
    sys.stdout.write(counts_table(titled))
    if given.write_readme:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n\n{counts_table(titled)}\n{END}{rest.partition(END)[2]}")
        RESULTS.write_text(f"{RESULTS_HEAD}\n{deviations_tables(titled)}")
    return 0


def _try(name: str, home: Path, case: str | None) -> Report:
    results = home / "results.json"
    with running(name, Path(sys.executable), home) as (target, http):
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=no", "-r", "", "-p", "no:cacheprovider"]
        command += [str(SUITE), "--target", target, "--http", http, "--report", str(results)]
        command += [] if name == "hexcomb" else ["--models", str(MODELS)]
        subprocess.run([*command, *(["--case", case] if case else [])], cwd=ROOT, stdout=subprocess.DEVNULL)
    return Report.from_json(results.read_text())


def _titled(name: str) -> str:
    return "Hexcomb" if name == "hexcomb" else requirements_of(name)[0].replace("==", " ")


if __name__ == "__main__":
    sys.exit(main())
