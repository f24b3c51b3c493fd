"""Results of a run, and tables of them.

    python -m tests.conformance.report NAME=results.json [NAME=results.json ...]

prints tables of several servers: how many cases of each weight hold, as in the README, and every deviation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

SEVERITIES = ("must", "should", "extension")
_CELL_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Result:
    """Of one case."""

    id: str
    severity: str
    section: str
    says: str
    outcome: str
    """passed, failed, or skipped: the case does not apply."""
    why: str


@dataclass
class Report:
    """Of one run."""

    results: list[Result] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """What `as_json` wrote."""
        return cls([Result(**each) for each in json.loads(text)])

    def as_json(self) -> str:
        """Every result."""
        return json.dumps([asdict(result) for result in self.results], indent=1, ensure_ascii=False)

    def count(self, outcome: str, severity: str) -> int:
        """Cases of this weight that ended so."""
        return sum(each.outcome == outcome and each.severity == severity for each in self.results)

    def deviations(self) -> list[Result]:
        """Cases that do not hold, the heaviest first."""
        failed = [each for each in self.results if each.outcome == "failed"]
        return sorted(failed, key=lambda each: (SEVERITIES.index(each.severity), each.id))

    def cell(self, severity: str) -> str:
        """Held / applicable, and what does not apply."""
        passed, failed = self.count("passed", severity), self.count("failed", severity)
        skipped = self.count("skipped", severity)
        return f"{passed} of {passed + failed}" + (f" ({skipped} n/a)" if skipped else "")

    def as_text(self) -> str:
        """For the terminal."""
        lines = [f"{severity:9}  {self.cell(severity)}" for severity in SEVERITIES]
        for each in self.deviations():
            lines += [f"{each.severity:9}  {each.id}: {each.why}", f"           says: {each.says} [{each.section}]"]
        return "\n".join(lines)


def counts_table(reports: Mapping[str, Report]) -> str:
    """How many cases of each weight hold, by server."""
    rows = [("cases that hold", *reports), ("---",) * (len(reports) + 1)]
    rows += [(weight, *(report.cell(weight) for report in reports.values())) for weight in SEVERITIES]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def deviations_tables(reports: Mapping[str, Report]) -> str:
    """Every case that does not hold, by server."""
    lines: list[str] = []
    for name, report in reports.items():
        lines += [f"## {name}", "", f"{len(report.deviations())} cases of {len(report.results)} do not hold.", ""]
        if report.deviations():
            lines += ["| case | weight | what it did |", "|---|---|---|"]
            lines += [f"| `{each.id}` | {each.severity} | {_cell(each.why)} |" for each in report.deviations()]
            lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text[:_CELL_CHARACTERS].replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def read(arguments: Sequence[str]) -> dict[str, Report]:
    """`NAME=FILE`, each."""
    pairs = (argument.split("=", 1) for argument in arguments)
    return {name: Report.from_json(Path(path).read_text()) for name, path in pairs}


if __name__ == "__main__":
    of_servers = read(sys.argv[1:])
    sys.stdout.write(f"{counts_table(of_servers)}\n{deviations_tables(of_servers)}")
