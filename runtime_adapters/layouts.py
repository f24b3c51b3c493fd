"""The directories that people have in their buckets: which file in there is the model, and of which format?

Four layouts are known, each by the file that only it has:

* **MLServer**: `model-settings.json` names an implementation and a file (`parameters.uri`);
* **MLflow**: `MLmodel` lists flavours, and for each the file with its data;
* **Triton**: `config.pbtxt`, or sub-directories that are numbers; the highest version is served;
* **KServe**: one file called `model` with a framework's suffix, beside whatever else lies there.

A directory that is none of these is left to the adapters, as a directory around one model file always was. What a
layout says is taken at its word: a model of a framework that is not served here is an error that names it, what is read
instead, and what to do. Where a layout's own file names a path, the path stays inside the directory.

Deliberately absent: a layout's serving options (instance groups, batching, several versions at a time), which are the
registration's; a repository of several models, each of which is registered under its own name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from runtime_adapters.errors import BadArtifact

_DESCRIPTION_BYTES_MAX = 1024 * 1024
_SHOWN_CHARACTERS = 80

_SUFFIXES = {
    ".skops": "sklearn",
    ".joblib": "pickle",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".onnx": "onnx",
    ".ubj": "xgboost",
    ".xgb": "xgboost",
    ".json": "xgboost",
    ".lgb": "lightgbm",
    ".lightgbm": "lightgbm",
    ".txt": "lightgbm",
    ".pt2": "torch",
    ".pt": "torch",
}
"""Which format a model file's suffix means in all layouts. `.bst` is XGBoost's or LightGBM's; its content tells."""
_READ = frozenset(_SUFFIXES.values())
_OF_CONTENT = (".bst", ".model", ".bin")

_MLSERVER = {
    "mlserver_sklearn.SKLearnModel": ("sklearn", "pickle"),
    "mlserver_xgboost.XGBoostModel": ("xgboost",),
    "mlserver_lightgbm.LightGBMModel": ("lightgbm",),
    "mlserver_onnx.OnnxModel": ("onnx",),
}
_MLSERVER_MLFLOW = "mlserver_mlflow.MLflowRuntime"
_MLFLOW = (
    ("xgboost", "data"),
    ("lightgbm", "data"),
    ("onnx", "data"),
    ("sklearn", "pickled_model"),
)
"""Flavours that are read, and where each names its file. `python_function` comes with every one of them."""
_TRITON = {
    "onnxruntime_onnx": "onnx",
    "onnxruntime": "onnx",
    "pytorch_libtorch": "torch",
    "pytorch": "torch",
}
_TRITON_FIL = {
    "xgboost": ("xgboost", "xgboost.model"),
    "xgboost_json": ("xgboost", "xgboost.json"),
    "xgboost_ubj": ("xgboost", "xgboost.ubj"),
    "lightgbm": ("lightgbm", "model.txt"),
}
_MODEL_TYPE = re.compile(
    r"key\s*+:\s*+[\"']model_type[\"'](?:\s*+,)?\s*+value(?:\s*+:)?\s*+\{\s*+string_value\s*+:\s*+[\"']([^\"']*+)[\"']"
)
"""Without a second try anywhere: a megabyte of spaces would take hours."""
_TRITON_FILES = {"onnx": ("model.onnx",), "torch": ("model.pt2", "model.pt")}

_ADVICE = (
    "convert it to one of the formats that are read (`hexcomb convert`, ONNX), or let a pool serve it whose pods front "
    "its own runtime"
)
_ELSEWHERE = (
    ("saved_model.pb", "a TensorFlow SavedModel"),
    ("*.keras", "a Keras model"),
    ("*.h5", "a Keras model"),
    ("*.pmml", "a PMML document"),
    ("*.mar", "a TorchServe archive"),
    ("model-store/*.mar", "a TorchServe archive"),
    ("*.safetensors", "weights in safetensors, without the program that runs them"),
    ("*.pdmodel", "a Paddle model"),
    ("model.xml", "an OpenVINO model"),
)


class _PlainYaml(yaml.SafeLoader):
    """Without merge keys (`<<`): a kilobyte of them becomes gigabytes, and MLflow writes none."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("merge keys are not read")


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_PlainYaml)


@dataclass(frozen=True, slots=True)
class Found:
    """A model in an artifact. `inner`: relative to the artifact, empty for the artifact itself. `formats`: which ones
    it may be; empty: the content tells."""

    inner: str = ""
    formats: tuple[str, ...] = ()


def find_model(artifact: Path, declared: str = "") -> Found:
    """Where the model is. `declared`: the format that the registration names, if any. Raises BadArtifact."""
    if declared and declared not in _READ:
        return Found("", (declared,))  # its adapter, or the server that it is for, knows its own layout
    if not artifact.is_dir() or (artifact / "model.py").is_file():  # a file, or a custom model
        return Found("", (declared,) if declared else ())
    found = _found_in(artifact)
    if found is None:
        _refuse_others(artifact, declared)
        return Found("", (declared,) if declared else ())
    if declared and found.formats and declared not in found.formats:
        raise BadArtifact(
            f"the artifact's layout says {' or '.join(found.formats)} ({found.inner or 'its directory'}), and the "
            f"registration says {declared}; leave the format out, or correct it{_for_pickles(found)}"
        )
    return Found(found.inner, (declared,)) if declared else found


def _found_in(directory: Path) -> Found | None:
    return next((found for recognise in _LAYOUTS if (found := recognise(directory)) is not None), None)


# MLServer -----------------------------------------------------------------------------------------------------------


def _mlserver(directory: Path) -> Found | None:
    path = directory / "model-settings.json"
    if not path.is_file():
        return None
    settings = _mapping(path, json.loads)
    implementation = settings.get("implementation")
    named = (settings.get("parameters") or {}).get("uri")
    inner = _inside(directory, path.name, named) if isinstance(named, str) and named not in ("", ".", "./") else ""
    if implementation == _MLSERVER_MLFLOW:
        found = _mlflow(directory / inner)
        if found is None:
            raise BadArtifact(f"{path.name}: there is no MLmodel in {inner or '.'}; put MLflow's directory there")
        return Found("/".join(filter(None, (inner, found.inner))), found.formats)
    formats = _MLSERVER.get(str(implementation))
    if formats is None:
        raise BadArtifact(
            f"{path.name}: implementation {_shown(implementation)} is not served here; read are "
            f"{', '.join((*_MLSERVER, _MLSERVER_MLFLOW))}; {_ADVICE}"
        )
    if (directory / inner).is_dir():
        below = _one_model_file(directory / inner)
        if below is None:
            raise BadArtifact(f"{path.name} names no file in parameters.uri, and there is no file called model.*")
        return Found("/".join(filter(None, (inner, below.inner))), _agreed(below.inner, formats, path.name))
    return Found(inner, _agreed(inner, formats, path.name))


# MLflow -------------------------------------------------------------------------------------------------------------


def _mlflow(directory: Path) -> Found | None:
    path = directory / "MLmodel"
    if not path.is_file():
        return None
    flavours = _mapping(path, _parse_yaml).get("flavors")
    if not isinstance(flavours, Mapping) or not flavours:
        raise BadArtifact(f"{path.name} lists no flavours; log the model again with MLflow")
    for flavour, field_name in _MLFLOW:
        described = flavours.get(flavour)
        if not isinstance(described, Mapping):
            continue
        named = described.get(field_name)
        if not isinstance(named, str):
            raise BadArtifact(f"{path.name}: flavour {flavour} names no file under {field_name}; log the model again")
        inner = _inside(directory, path.name, named)
        format_name = _SUFFIXES.get(PurePosixPath(inner).suffix)
        # Wrappers of XGBoost and LightGBM for scikit-learn are logged as pickles under their own flavour.
        formats = (format_name,) if format_name in ("pickle", "sklearn") else (flavour,)
        return Found(inner, formats)
    listed = ", ".join(sorted(str(name)[:_SHOWN_CHARACTERS] for name in flavours))
    read = ", ".join(flavour for flavour, _ in _MLFLOW)
    raise BadArtifact(f"{path.name} has the flavours {listed}; read are {read}; {_ADVICE}")


# Triton -------------------------------------------------------------------------------------------------------------


def _triton(directory: Path) -> Found | None:
    config = directory / "config.pbtxt"
    versions = sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())
    if not config.is_file():
        if not versions or any(path.is_file() and path.suffix in _SUFFIXES for path in directory.iterdir()):
            return None
        return _triton_version(directory, str(versions[-1]), "", {})
    if not versions:
        raise BadArtifact(f"{config.name} has no version beside it: a directory `1` with the model in it is needed")
    said = _pbtxt(config)
    return _triton_version(directory, str(versions[-1]), said.get("backend") or said.get("platform", ""), said)


def _triton_version(directory: Path, version: str, backend: str, said: Mapping[str, str]) -> Found:
    inside = directory / version
    name = said.get("default_model_filename", "")
    if not backend:
        if (inside / "model.onnx").is_file():
            return Found(version, ("onnx",))
        found = _one_model_file(inside)
        if found is None:
            raise BadArtifact(
                f"version {version} holds {_names_in(inside)}, and no config.pbtxt says what it is; name its one model "
                "file model.onnx, model.pt2, model.ubj, …, or add a config.pbtxt"
            )
        return Found(f"{version}/{found.inner}", found.formats)
    if backend == "fil":
        format_name, default = _TRITON_FIL.get(said.get("model_type", "xgboost"), ("", ""))
        files: tuple[str, ...] = (name or default,)
    else:
        format_name = _TRITON.get(backend, "")
        files = (name,) if name else _TRITON_FILES.get(format_name, ())
    if not format_name:
        what = f"{backend} with model_type {said.get('model_type')}" if backend == "fil" else backend
        raise BadArtifact(
            f"config.pbtxt: backend {_shown(what)} is not served here; read are {', '.join((*_TRITON, 'fil'))}; "
            f"{_ADVICE}"
        )
    for file in files:
        inner = _inside(inside, "config.pbtxt", file, must_exist=False)
        if (inside / inner).exists():
            # Beside an ONNX graph its external data lies, so the adapter gets the directory.
            whole = format_name == "onnx" and len(list(inside.glob("*.onnx"))) == 1 and inner == "model.onnx"
            return Found(version if whole else f"{version}/{inner}", (format_name,))
    raise BadArtifact(f"version {version} holds {_names_in(inside)}; {backend} wants {' or '.join(files)} there")


def _pbtxt(path: Path) -> dict[str, str]:
    """The fields that matter here, of Triton's configuration in protobuf's text form: strings at the top level, and the
    parameter `model_type` of the FIL backend."""
    text = re.sub(r"(?m)#.*$", "", _text(path))
    depth, top = 0, []
    for character in text:
        depth += character in "{["
        top.append(character if depth == 0 else " ")
        depth -= character in "}]"
    found = dict(re.findall(r"\b(platform|backend|default_model_filename)\s*:\s*[\"']([^\"']*)[\"']", "".join(top)))
    kind = _MODEL_TYPE.search(text)
    return found | ({"model_type": kind.group(1)} if kind else {})


# KServe -------------------------------------------------------------------------------------------------------------


def _kserve(directory: Path) -> Found | None:
    if len(list(directory.iterdir())) == 1:
        return None  # a directory around one file, which adapters know
    found = _one_model_file(directory)
    if found is not None and found.formats == ("onnx",):
        return None  # its weights may lie beside it, so the adapter gets the directory
    return found


def _one_model_file(directory: Path) -> Found | None:
    files = [path for path in directory.glob("model.*") if path.is_file() and path.suffix in (*_SUFFIXES, *_OF_CONTENT)]
    if len(files) != 1:
        return None
    (file,) = files
    format_name = _SUFFIXES.get(file.suffix)
    return Found(file.name, (format_name,) if format_name else ())


_LAYOUTS: tuple[Callable[[Path], Found | None], ...] = (_mlserver, _mlflow, _triton, _kserve)


# What all of them share ---------------------------------------------------------------------------------------------


def _agreed(inner: str, formats: tuple[str, ...], who: str) -> tuple[str, ...]:
    """Of the formats that an implementation means, the one that the file's suffix says, if it says one."""
    of_suffix = _SUFFIXES.get(PurePosixPath(inner).suffix)
    if len(formats) == 1:
        return formats
    if of_suffix in formats:
        return (of_suffix,)
    raise BadArtifact(f"{who}: {_shown(inner)} is no file of {' or '.join(formats)}; read are .skops, .joblib and .pkl")


def _for_pickles(found: Found) -> str:
    return "; `hexcomb convert` makes a pickle a file that is safe to load" if "pickle" in found.formats else ""


def _inside(directory: Path, who: str, named: str, *, must_exist: bool = True) -> str:
    parts = PurePosixPath(named).parts
    if PurePosixPath(named).is_absolute() or ".." in parts or "\0" in named or "://" in named:
        raise BadArtifact(f"{who} names {_shown(named)}, which is not inside the artifact; name a file beside it")
    inner = "/".join(parts)
    if must_exist and not (directory / inner).exists():
        raise BadArtifact(f"{who} names {_shown(named)}, which is not there; found {_names_in(directory)}")
    return inner


def _refuse_others(directory: Path, declared: str) -> None:
    if declared:
        return
    for pattern, what in _ELSEWHERE:
        if any(directory.glob(pattern)):
            raise BadArtifact(f"the artifact is {what} ({pattern}); this pod does not run those: {_ADVICE}")


def _mapping(path: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    try:
        found = parse(_text(path))
    except (ValueError, yaml.YAMLError, RecursionError):
        found = None
    if not isinstance(found, Mapping):
        raise BadArtifact(f"{path.name} cannot be read; write it anew with the tool that made it")
    return found


def _text(path: Path) -> str:
    if path.stat().st_size > _DESCRIPTION_BYTES_MAX:
        raise BadArtifact(f"{path.name} is larger than {_DESCRIPTION_BYTES_MAX} bytes, which no description is")
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise BadArtifact(f"{path.name} is not UTF-8 text; write it anew with the tool that made it") from None


def _names_in(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"


def _shown(value: object) -> str:
    return ascii(str(value)[:_SHOWN_CHARACTERS])
