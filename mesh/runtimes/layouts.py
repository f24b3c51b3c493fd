"""An artifact as a directory that Triton, or MLServer, loads a model from.

Nothing is copied: files are linked to where the disk tier keeps them, which holds them as long as the copy lives. Only
what names the model is written anew, since each copy has a name of its own there.

Triton: `<name>/config.pbtxt` and `<name>/<version>/...`. An artifact that has this layout is taken as it is; any other
becomes version 1, and Triton works out its configuration (`backend` and `filename` say what cannot be guessed).
MLServer: `<name>/model-settings.json`, whose `uri` says where the files are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime_adapters.errors import BadArtifact
from runtime_adapters.validation import refuse_unknown_parameters

TRITON_PARAMETERS = ("backend", "filename")
_CONFIG = "config.pbtxt"
_SETTINGS = "model-settings.json"
_DESCRIPTION_BYTES_MAX = 1024 * 1024
_FILE_NAMES = {
    "tensorflow": "model.savedmodel",
    "keras": "model.savedmodel",
    "openvino": "model.xml",
    "pytorch": "model.pt",
    "onnx": "model.onnx",
    "tensorrt": "model.plan",
    "python": "model.py",
}
"""What Triton expects a version to hold, by format."""
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*+"?|#[^\n]*|[{}\[\]]|[A-Za-z_]\w*+')
"""Whatever begins is taken, ended or not: to try again behind each beginning would take hours for a megabyte."""
_NAME_VALUE = re.compile(r'\s*:\s*("(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\')[ \t]*[,;]?')


def lay_out_for_triton(artifact: Path, format_name: str, parameters: Mapping[str, str], into: Path) -> None:
    """Fill `into`, which is named like the model and does not exist yet. Raises BadArtifact."""
    refuse_unknown_parameters(parameters, TRITON_PARAMETERS)
    into.mkdir(parents=True)
    config = artifact / _CONFIG
    if artifact.is_dir() and config.is_file():
        for inside in artifact.iterdir():
            if inside.name != _CONFIG:
                (into / inside.name).symlink_to(inside.resolve())
        (into / _CONFIG).write_text(without_name(_text(config)))
        return
    if artifact.is_dir() and any(inside.is_dir() and inside.name.isdecimal() for inside in artifact.iterdir()):
        for inside in artifact.iterdir():
            (into / inside.name).symlink_to(inside.resolve())
    else:
        version = into / "1"
        version.mkdir()
        filename = parameters.get("filename") or _file_name(artifact, format_name)
        if "/" in filename or filename in ("", ".", ".."):
            raise BadArtifact(f"parameter filename is {filename!r}; it must be a name, not a path")
        (version / filename).symlink_to(artifact.resolve())
    if backend := parameters.get("backend"):
        (into / _CONFIG).write_text(f"backend: {json.dumps(backend)}\n")


def _file_name(artifact: Path, format_name: str) -> str:
    name = _FILE_NAMES.get(format_name)
    if name is None:
        raise BadArtifact(
            f"artifact {artifact.name!r} is no Triton model directory ({_CONFIG} and numbered versions), and what "
            f"Triton calls a file of format {format_name!r} is not known; say so with the parameter filename"
        )
    return name


def lay_out_for_mlserver(artifact: Path, implementation: str | None, parameters: Mapping[str, str], into: Path) -> None:
    """The same for MLServer. `implementation`: the class that runs artifacts without settings. Raises BadArtifact."""
    refuse_unknown_parameters(parameters)
    found = artifact / _SETTINGS if artifact.is_dir() else None
    settings: dict[str, Any] = {}
    if found is not None and found.is_file():
        try:
            settings = json.loads(_text(found))
        except ValueError as error:
            raise BadArtifact(f"{_SETTINGS} is not JSON: {error}") from error
        if not isinstance(settings, dict) or not isinstance(settings.setdefault("parameters", {}), dict):
            raise BadArtifact(f"{_SETTINGS} must be an object, and `parameters` in it another")
        uri = str(settings["parameters"].get("uri") or "")
        inside = (artifact / uri).resolve()
        if not inside.is_relative_to(artifact.resolve()):
            raise BadArtifact(f"{_SETTINGS}: parameters.uri is {uri[:200]!r}, outside of the artifact")
        settings["parameters"]["uri"] = str(inside)
    elif implementation is None:
        raise BadArtifact(f"artifact {artifact.name!r} has no {_SETTINGS}; add one that names its implementation")
    else:
        settings = {"implementation": implementation, "parameters": {"uri": str(artifact.resolve())}}
    into.mkdir(parents=True)
    (into / _SETTINGS).write_text(json.dumps({**settings, "name": into.name}))


def without_name(config: str) -> str:
    """A Triton configuration less the model's own name: then it is that of its directory."""
    depth = 0
    for token in _TOKEN.finditer(config):
        word = token[0]
        if word in "{[":
            depth += 1
        elif word in "}]":
            depth -= 1
        elif word == "name" and depth == 0 and (value := _NAME_VALUE.match(config, token.end())):
            return config[: token.start()] + config[value.end() :]
    return config


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _DESCRIPTION_BYTES_MAX:
            raise BadArtifact(f"{path.name} is larger than {_DESCRIPTION_BYTES_MAX} bytes, which no description is")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadArtifact(f"{path.name} cannot be read: {error}") from error
