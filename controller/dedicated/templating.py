"""`{{.Name}}` and its kin in a runtime's container, and in what the object says of it.

KServe runs Go's templates over the whole container. People use four things of them, and only those are read here: the
service's name and namespace, its labels and its annotations. Anything else between `{{` and `}}` is refused, with its
text: a value that came out empty would start a server on the wrong model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from controller.reading import InvalidField, shown

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_ENTRY = re.compile(r"\.(Labels|Annotations)\.([A-Za-z0-9_]+)")


def rendered(
    value: Any, path: str, name: str, namespace: str, labels: Mapping[str, str], annotations: Mapping[str, str]
) -> Any:
    """The same with every text rendered. Raises InvalidField."""

    def put(action: re.Match[str]) -> str:
        if action[1] in (".Name", ".ObjectMeta.Name"):
            return name
        if action[1] in (".Namespace", ".ObjectMeta.Namespace"):
            return namespace
        entry = _ENTRY.fullmatch(action[1])
        known = (labels if entry[1] == "Labels" else annotations).get(entry[2]) if entry is not None else None
        if known is None:
            raise InvalidField(
                path,
                f"has {shown(action[0])}, which is neither .Name, .Namespace nor a label or annotation of the service",
            )
        return known

    def walk(part: Any) -> Any:
        if isinstance(part, str):
            return _ACTION.sub(put, part)
        if isinstance(part, Mapping):
            return {key: walk(inner) for key, inner in part.items()}
        if isinstance(part, list | tuple):
            return [walk(inner) for inner in part]
        return part

    return walk(value)
