"""Which storage key a tenant may use.

The operator keeps storage keys in one JSON or YAML file, or in a directory with one file per key (a mounted Secret).
The entries are those of ModelMesh's and KServe's `storage-config`, and KServe's secrets (`key_entries`):

    {"type": "s3", "access_key_id": "...", "secret_access_key": "...", "endpoint_url": "...", "region": "..."}
    {"type": "http", "url": "https://models.example/", "headers": {"Authorization": "..."}, "certificate": "PEM"}
    {"AWS_ACCESS_KEY_ID": "...", "AWS_SECRET_ACCESS_KEY": "...", "AWS_ENDPOINT_URL": "..."}

**Scope.** A key belongs to a tenant, and another tenant's lookup does not find it: the error is the same as for a key
that does not exist. An entry named `tenant/name` belongs to that tenant, `*/name` to everybody, and a bare `name` to
tenant `default`; in a directory, subdirectories are the tenants, and a directory in one of those is a Secret with one
file per field. A request that names no key gets `default_<type>`, then `default`, in its own scope, then in `*`, else
it is anonymous; a claim (pvc) needs no name, the key of that claim is found.

**Trust.** With an endpoint of its own, a tenant's key decides which server `s3://bucket/...` is. So the operator's
trusted prefixes hold for keys of `default` and `*`, and for a tenant's own key only if its entry says
`"trusted_prefixes_apply": true`.

Changed files are read again at the next lookup (a Secret is edited while pods run); a broken edit is reported by that
lookup, and the pod goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from runtime_adapters.artifacts.errors import ArtifactDenied, BadStorageConfig
from runtime_adapters.artifacts.key_entries import parse_entry
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.storage_keys import PvcKey, StorageKey, kind_of

DEFAULT_TENANT = "default"
EVERYBODY = "*"
_FILE_BYTES_MAX = 1024 * 1024
_ENTRIES_MAX = 10_000
_SUFFIXES = (".json", ".yaml", ".yml")
_OTHER_NAMES = {"gs": ("gcs",)}
"""What ModelMesh calls it in `default_<type>`."""

Scoped = Mapping[tuple[str, str], StorageKey]
"""(tenant, key name) -> key."""


class StorageKeys:
    """All storage keys of the pod, looked up by tenant and name."""

    def __init__(self, keys: Scoped | None = None, *, path: Path | None = None) -> None:
        """From values, or from a file or directory (`path`), which is read now. Raises BadStorageConfig."""
        self._path = path
        self._keys: Scoped = dict(keys or {})
        self._signature: object = None
        if path is not None:
            self._read_if_changed(path)

    @classmethod
    def from_path(cls, path: Path | None) -> StorageKeys:
        """The keys in a file or directory; none for None."""
        return cls(path=path)

    def __repr__(self) -> str:
        return f"StorageKeys({len(self._keys)} keys)"

    def find(self, tenant: str, name: str | None, location: Location) -> StorageKey | None:
        """The key that this tenant's request uses; None means anonymous. Raises ArtifactDenied. Reads files."""
        if self._path is not None:
            self._read_if_changed(self._path)
        if name:
            found = self._keys.get((tenant, name)) or self._keys.get((EVERYBODY, name))
            if found is None:
                raise ArtifactDenied(
                    f"storage_key {name[:80]!r}: tenant {tenant!r} has no such key; ask the operator to add it to the "
                    "storage config, or leave the field out for the default key"
                )
            _check_kind(found, location.kind, name)
            return found
        if location.kind == PvcKey.kind:
            return self._claim(tenant, location.authority)
        kinds = (location.kind, *_OTHER_NAMES.get(location.kind, ()))
        for scope in (tenant, EVERYBODY):
            for default in (*(f"default_{kind}" for kind in kinds), "default"):
                found = self._keys.get((scope, default))
                if found is not None and kind_of(found) == location.kind:
                    return found
        return None

    def _claim(self, tenant: str, claim: str) -> StorageKey | None:
        for (scope, _), key in self._keys.items():
            if scope in (tenant, EVERYBODY) and isinstance(key, PvcKey) and key.name == claim:
                return key
        return None

    def _read_if_changed(self, path: Path) -> None:
        try:
            signature = _signature_of(path)
            if signature != self._signature:
                self._keys = read_storage_config(path)
                self._signature = signature
        except OSError as error:
            raise BadStorageConfig(f"storage config {str(path)!r}: {error.strerror}; check --storage-config") from None


def read_storage_config(path: Path) -> dict[tuple[str, str], StorageKey]:
    """Parse a file of entries, or a directory of files. Raises BadStorageConfig, OSError."""
    keys: dict[tuple[str, str], StorageKey] = {}
    for name, entry in _entries(path):
        tenant, slash, bare = name.partition("/")
        scope, key_name = (tenant, bare) if slash else (DEFAULT_TENANT, name)
        if not scope or not key_name or "/" in key_name:
            raise BadStorageConfig(f"storage key {name[:80]!r}: a name is `name`, `tenant/name` or `*/name`")
        keys[scope, key_name] = parse_entry(name, entry, trusted_by_default=scope in (DEFAULT_TENANT, EVERYBODY))
        if len(keys) > _ENTRIES_MAX:
            raise BadStorageConfig(f"storage config holds more than {_ENTRIES_MAX} keys")
    return keys


def _entries(path: Path) -> list[tuple[str, object]]:
    if not path.is_dir():
        whole = _read_document(path)
        if not isinstance(whole, dict):
            raise BadStorageConfig(f"storage config {path.name!r}: expected a mapping of key names to entries")
        # The value may be the entry, or its JSON text as a Secret holds it.
        return [(str(name), _inner(path.name, str(name), value)) for name, value in whole.items()]
    found: list[tuple[str, object]] = []
    for child in sorted(path.iterdir()):
        # Names with a leading dot are the bookkeeping of mounted Secrets (..data) and of editors.
        if child.name.startswith("."):
            continue
        if child.is_dir():
            for below in (each for each in sorted(child.iterdir()) if not each.name.startswith(".")):
                entry = _read_secret(below) if below.is_dir() else _read_document(below)
                found.append((f"{child.name}/{_key_name(below)}", entry))
        else:
            found.append((_key_name(child), _read_document(child)))
    return found


def _key_name(file: Path) -> str:
    return file.name.removesuffix(file.suffix) if file.suffix in _SUFFIXES else file.name


def _read_document(path: Path) -> object:
    _check_length(path)
    try:
        return _parse_text(path.read_text())
    except (ValueError, yaml.YAMLError):
        # The parser's own message quotes the text, and the text holds secrets.
        raise BadStorageConfig(f"storage config {path.name!r} is neither JSON nor YAML") from None


def _read_secret(directory: Path) -> dict[str, str]:
    """A Secret as Kubernetes mounts it: a file per field."""
    files = [file for file in sorted(directory.iterdir()) if not file.name.startswith(".") and file.is_file()]
    for file in files:
        _check_length(file)
    return {file.name: file.read_text().rstrip("\r\n") for file in files}


def _check_length(path: Path) -> None:
    if path.stat().st_size > _FILE_BYTES_MAX:
        raise BadStorageConfig(f"storage config {path.name!r} is larger than {_FILE_BYTES_MAX} bytes")


def _inner(file: str, name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return _parse_text(value)
    except (ValueError, yaml.YAMLError):
        raise BadStorageConfig(f"storage config {file!r}, key {name[:80]!r}: neither JSON nor YAML") from None


def _parse_text(text: str) -> object:
    return json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)


def _check_kind(key: StorageKey, kind: str, name: str) -> None:
    if kind_of(key) != kind:
        raise ArtifactDenied(
            f"storage_key {name[:80]!r} is of type {kind_of(key)}, and the uri is of type {kind}; "
            "name a key of the uri's type"
        )


def _signature_of(path: Path) -> object:
    if not path.is_dir():
        return _stamp(path)
    return tuple(
        (str(Path(directory) / name), _stamp(Path(directory) / name))
        for directory, _, names in sorted(os.walk(path, followlinks=True))
        for name in sorted(names)
    )


def _stamp(path: Path) -> tuple[int, int, int]:
    seen = path.stat()
    return (seen.st_ino, seen.st_mtime_ns, seen.st_size)
