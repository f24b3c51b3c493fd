"""ModelMesh's `storage_params`: which bucket a path lies in, said beside the path, as the URI that means the same.

ModelMesh's controller takes `s3://bucket/path` of an InferenceService apart into a type, a bucket and a path. Here they
are put together again. What would override the storage key itself (an endpoint, a region, credentials) is refused: with
it, whoever registers could have a tenant's key sign requests to a server of his choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from placement.errors import InvalidSpec

_PLACES = {
    "s3": ("s3", ("bucket",)),
    "gcs": ("gs", ("bucket",)),
    "gs": ("gs", ("bucket",)),
    "azure": ("az", ("container", "account_name")),
    "pvc": ("pvc", ("name",)),
}
"""Type -> scheme, and the parameters that say where; the first is the bucket."""


def uri_of(path: str, params: Mapping[str, Any]) -> str:
    """The whole URI. Raises InvalidSpec."""
    if "://" in path:
        raise InvalidSpec(
            "modelInfo.key: storage_params stand beside a path within the bucket, and modelInfo.path is a whole URI; "
            "give one of the two"
        )
    kind = params.get("type")
    if kind not in _PLACES:
        raise InvalidSpec(
            f"modelInfo.key: storage_params.type is one of {', '.join(_PLACES)}; for others give the whole URI in "
            "modelInfo.path"
        )
    scheme, places = _PLACES[kind]
    unknown = sorted(str(name) for name in params if name not in ("type", *places))
    if unknown:
        raise InvalidSpec(
            f"modelInfo.key: storage_params.{unknown[0][:80]} is not taken from a registration; put it into the "
            f"storage key ({', '.join(places)} may stand here)"
        )
    if not all(isinstance(value, str) for value in params.values()):
        raise InvalidSpec("modelInfo.key: storage_params are text")
    bucket, *account = (params.get(name, "") for name in places)
    authority = f"{bucket}@{account[0]}" if account and account[0] else bucket
    return f"{scheme}://{authority}/{path.lstrip('/')}"
