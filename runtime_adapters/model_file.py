"""An artifact that is one file, or a directory around one: where is the file, and what is in it?

For the frameworks whose models are a single file. Deliberately absent: what the content means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime_adapters.errors import BadArtifact, LoadFailed


def find_model_file(format_name: str, artifact: Path, suffixes: Sequence[str]) -> Path:
    """The file itself, or the only one with such a suffix in a directory. Raises BadArtifact."""
    if artifact.is_dir():
        files = [path for path in sorted(artifact.iterdir()) if path.suffix in suffixes and path.is_file()]
        if len(files) != 1:
            raise BadArtifact(
                f"{format_name}: directory {artifact.name!r} holds {len(files)} model files "
                f"({', '.join(suffixes)}); exactly one is needed; point the URI at the file"
            )
        return files[0]
    if not artifact.is_file():
        raise BadArtifact(f"{format_name}: artifact {artifact.name!r} is not there; check the URI, then register again")
    return artifact


def read_beginning(artifact: Path, suffixes: Sequence[str], bytes_max: int) -> bytes:
    """For detection: the file's first bytes; none where there is no such file, or it cannot be read."""
    try:
        with find_model_file("detection", artifact, suffixes).open("rb") as file:
            return file.read(bytes_max)
    except (BadArtifact, OSError):
        return b""


def read_model_file(format_name: str, artifact: Path, suffixes: Sequence[str]) -> bytes:
    """Its bytes. Raises BadArtifact (nothing there, empty) and LoadFailed (not readable now)."""
    path = find_model_file(format_name, artifact, suffixes)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror
        raise LoadFailed(f"{format_name}: artifact {path.name!r} cannot be read: {reason}; try again") from error
    if not content:
        raise BadArtifact(f"{format_name}: artifact {path.name!r} is empty; upload the model file again")
    return content
