"""A runtime's container and pod, with what the object says laid over them.

As Kubernetes' strategic merge, which KServe uses: objects are merged field by field; lists whose entries have a name
are merged by that name; other lists are replaced. Two things differ from it: `args` of the object come after the
runtime's, in one list, as in KServe; and a probe that names another way to ask takes the runtime's way out, since the
API server refuses a probe with two ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEY_OF_LIST = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "hostAliases": "ip",
}
_PROBE_HANDLERS = frozenset({"exec", "httpGet", "tcpSocket", "grpc"})


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`; neither changes. What is null in `over` is not said."""
    result = dict(base)
    if _PROBE_HANDLERS & over.keys():
        result = {name: value for name, value in result.items() if name not in _PROBE_HANDLERS}
    for name, value in over.items():
        if value is None:
            continue
        known = result.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            result[name] = merged(known, value)
        elif isinstance(known, list) and isinstance(value, list) and name == "args":
            result[name] = [*known, *value]
        elif isinstance(known, list) and isinstance(value, list) and name in _KEY_OF_LIST:
            result[name] = _merged_list(known, value, _KEY_OF_LIST[name])
        else:
            result[name] = value
    return result


def _merged_list(base: list[Any], over: list[Any], key: str) -> list[Any]:
    """Entries of the same key are merged where they stand; new ones come after."""
    result = list(base)
    for entry in over:
        at = next(
            (index for index, known in enumerate(result) if _key(known, key) == _key(entry, key) is not None), None
        )
        if at is None:
            result.append(entry)
        else:
            result[at] = merged(result[at], entry)
    return result


def _key(entry: object, key: str) -> object:
    return entry.get(key) if isinstance(entry, Mapping) else None
