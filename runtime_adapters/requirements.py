"""Which packages a custom model asks for: the `requirements.txt` beside its `model.py`.

Lines are a package's name with a range of versions, a marker, extras, and hashes (`--hash=sha256:...`). Everything else
that pip would read is refused: another index, a path, a URL or an option would let the file say where code comes from,
and that is the operator's to say. Packages that are here in those versions already need not be installed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from runtime_adapters.errors import BadArtifact

REQUIREMENTS_FILE = "requirements.txt"
FILE_BYTES_MAX = 256 << 10
"""A thousand packages with five hashes each."""
_HASH = re.compile(r"\s--hash=(?P<hash>sha(?:256|384|512):[0-9a-f]+)")
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True, slots=True)
class Requirements:
    """The packages of one file, in its order, each as one line for pip."""

    lines: tuple[str, ...]
    parsed: tuple[Requirement, ...]
    hashed: bool
    """Some line has a hash; pip then asks for one of all."""

    @property
    def text(self) -> str:
        """The file that pip is given."""
        return "".join(f"{line}\n" for line in self.lines)

    def digest(self, *more: str) -> str:
        """Names what installing them gives, where `more` says all else that it depends on."""
        return hashlib.sha256("\n".join([*sorted(self.lines), "", *more]).encode()).hexdigest()


def read_requirements(artifact: Path) -> Requirements | None:
    """None: the artifact has no such file, or it asks for nothing. Raises BadArtifact."""
    path = artifact / REQUIREMENTS_FILE
    if not path.is_file():
        return None
    if path.stat().st_size > FILE_BYTES_MAX:
        raise BadArtifact(f"{REQUIREMENTS_FILE} has {path.stat().st_size:,} bytes; allowed are {FILE_BYTES_MAX:,}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise BadArtifact(f"{REQUIREMENTS_FILE} cannot be read as UTF-8 text: {error}") from error
    lines, parsed, hashed = [], [], False
    for number, line in _logical_lines(text):
        hashes = _HASH.findall(line)
        requirement = _requirement(number, _HASH.sub("", line).strip())
        hashed = hashed or bool(hashes)
        if requirement.marker is None or requirement.marker.evaluate():
            parsed.append(requirement)
        lines.append(" ".join([str(requirement), *(f"--hash={each}" for each in hashes)]))
    return Requirements(tuple(lines), tuple(parsed), hashed) if parsed else None


def missing_here(
    requirements: Requirements, version_of: Callable[[str], str] = metadata.version
) -> Sequence[Requirement]:
    """Those that this pod's own packages do not satisfy. What has a hash is never satisfied: nobody kept the file that
    was installed here. Extras are not looked into."""

    def is_missing(requirement: Requirement) -> bool:
        try:
            found = version_of(requirement.name)
        except metadata.PackageNotFoundError:
            return True
        return bool(requirement.extras) or not requirement.specifier.contains(found, prereleases=True)

    return [each for each in requirements.parsed if requirements.hashed or is_missing(each)]


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines that say something, with the number of their first; a backslash at the end goes on with the next one."""
    found: list[tuple[int, str]] = []
    begun, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first if begun else number
        begun += _COMMENT.sub("", line)
        if begun.endswith("\\"):
            begun = begun[:-1] + " "
            continue
        if begun.strip():
            found.append((first, begun.strip()))
        begun = ""
    if begun.strip():
        found.append((first, begun.strip()))
    return found


def _requirement(number: int, line: str) -> Requirement:
    where = f"{REQUIREMENTS_FILE}, line {number}"
    allowed = (
        "allowed are a name, versions, extras, a marker and --hash, since the operator says where packages come from"
    )
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        raise BadArtifact(f"{where}: {line[:80]!r} is no requirement; {allowed}") from error
    if requirement.url is not None:
        raise BadArtifact(f"{where}: {requirement.name} is asked for by a URL; {allowed}")
    return requirement
