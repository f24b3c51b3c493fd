"""Which storage key a tenant may use, and what is in it.

The operator keeps storage keys in one JSON or YAML file, or in a directory with one file per key (a mounted Secret).
The entries are those of ModelMesh's `storage-config`:

    {"type": "s3", "access_key_id": "...", "secret_access_key": "...", "endpoint_url": "...", "region": "...",
     "bucket": "...", "certificate": "PEM"}
    {"type": "http", "url": "https://models.example/", "headers": {"Authorization": "..."}, "certificate": "PEM"}

**Scope.** A key belongs to a tenant, and another tenant's lookup does not find it: the error is the same as for a key
that does not exist. An entry named `tenant/name` belongs to that tenant, `*/name` to everybody, and a bare `name` to
tenant `default`; in a directory, subdirectories are the tenants. A request that names no key gets `default_<type>`,
then `default`, in its own scope, then in `*`, else it is anonymous.

**Trust.** With an endpoint of its own, a tenant's key decides which server `s3://bucket/...` is. So the operator's
trusted prefixes hold for keys of `default` and `*`, and for a tenant's own key only if its entry says
`"trusted_prefixes_apply": true`.

**Secrets** are in fields that no repr shows, and go nowhere but into the request that they sign. Headers go only to
the origin of the key's `url`, so that a registrar cannot send them to a server of his choice.

Changed files are read again at the next lookup (a Secret is edited while pods run); a broken edit is reported by that
lookup, and the pod goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from runtime_adapters.artifacts.errors import ArtifactDenied, BadStorageConfig

DEFAULT_TENANT = "default"
EVERYBODY = "*"
_FILE_BYTES_MAX = 1024 * 1024
_ENTRIES_MAX = 10_000
_S3_FIELDS = {"access_key_id", "secret_access_key", "session_token", "endpoint_url", "region", "bucket", "certificate"}
_HTTP_FIELDS = {"url", "headers", "certificate"}
_COMMON_FIELDS = {"type", "trusted_prefixes_apply"}
_SUFFIXES = (".json", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class S3Key:
    """Where and as whom to read S3 buckets. Without an access key: unsigned requests."""

    endpoint_url: str = ""
    region: str = "us-east-1"
    bucket: str = ""
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    trusted_prefixes_apply: bool = True

    @property
    def endpoint(self) -> str:
        """The server: never left to the process's environment."""
        return self.endpoint_url.rstrip("/") or f"https://s3.{self.region}.amazonaws.com"


@dataclass(frozen=True, slots=True)
class HttpKey:
    """Headers for one origin. `origin` is `scheme://host[:port]` with the port always written."""

    origin: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificate: str = field(default="", repr=False)
    trusted_prefixes_apply: bool = True


@dataclass(frozen=True, slots=True)
class UnsupportedKey:
    """An entry of a type that this pod cannot read from (ModelMesh's gcs, azure, pvc)."""

    type: str


StorageKey = S3Key | HttpKey | UnsupportedKey
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

    def find(self, tenant: str, name: str | None, scheme: str) -> StorageKey | None:
        """The key that this tenant's request uses; None means anonymous. Raises ArtifactDenied. Reads files."""
        if self._path is not None:
            self._read_if_changed(self._path)
        kind = "http" if scheme == "https" else scheme
        if name:
            found = self._keys.get((tenant, name)) or self._keys.get((EVERYBODY, name))
            if found is None:
                raise ArtifactDenied(
                    f"storage_key {name[:80]!r}: tenant {tenant!r} has no such key; ask the operator to add it to the "
                    "storage config, or leave the field out for the default key"
                )
            _check_kind(found, kind, name)
            return found
        for scope in (tenant, EVERYBODY):
            for default in (f"default_{kind}", "default"):
                found = self._keys.get((scope, default))
                if found is not None and _kind_of(found) == kind:
                    return found
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
        keys[scope, key_name] = _parse_entry(name, scope, entry)
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
            files = [file for file in sorted(child.iterdir()) if not file.name.startswith(".") and file.is_file()]
            found += [(f"{child.name}/{_key_name(file)}", _read_document(file)) for file in files]
        else:
            found.append((_key_name(child), _read_document(child)))
    return found


def _key_name(file: Path) -> str:
    return file.name.removesuffix(file.suffix) if file.suffix in _SUFFIXES else file.name


def _read_document(path: Path) -> object:
    if path.stat().st_size > _FILE_BYTES_MAX:
        raise BadStorageConfig(f"storage config {path.name!r} is larger than {_FILE_BYTES_MAX} bytes")
    try:
        return _parse_text(path.read_text())
    except (ValueError, yaml.YAMLError):
        # The parser's own message quotes the text, and the text holds secrets.
        raise BadStorageConfig(f"storage config {path.name!r} is neither JSON nor YAML") from None


def _inner(file: str, name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return _parse_text(value)
    except (ValueError, yaml.YAMLError):
        raise BadStorageConfig(f"storage config {file!r}, key {name[:80]!r}: neither JSON nor YAML") from None


def _parse_text(text: str) -> object:
    return json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)


def _parse_entry(name: str, scope: str, entry: object) -> StorageKey:
    if not isinstance(entry, dict):
        raise BadStorageConfig(f"storage key {name!r}: expected fields such as type and endpoint_url, found no mapping")
    kind = entry.get("type")
    if not isinstance(kind, str) or not kind:
        raise BadStorageConfig(f"storage key {name!r}: field type is missing; it is s3 or http")
    if kind not in ("s3", "http"):
        return UnsupportedKey(kind)
    allowed = _COMMON_FIELDS | (_S3_FIELDS if kind == "s3" else _HTTP_FIELDS)
    unknown = sorted(str(key) for key in entry if key not in allowed)
    if unknown:
        raise BadStorageConfig(
            f"storage key {name!r}: field {unknown[0][:80]!r} is not known for type {kind}; "
            f"known ones are {', '.join(sorted(allowed))}"
        )
    trusted = entry.get("trusted_prefixes_apply", scope in (DEFAULT_TENANT, EVERYBODY))
    if not isinstance(trusted, bool):
        raise BadStorageConfig(f"storage key {name!r}: trusted_prefixes_apply is true or false")
    return _parse_s3(name, entry, trusted) if kind == "s3" else _parse_http(name, entry, trusted)


def _parse_s3(name: str, entry: dict[str, Any], trusted: bool) -> S3Key:
    text = {key: _text(name, entry, key) for key in _S3_FIELDS if entry.get(key) not in (None, "")}
    if ("access_key_id" in text) != ("secret_access_key" in text):
        raise BadStorageConfig(f"storage key {name!r}: access_key_id and secret_access_key come together or not at all")
    if "endpoint_url" in text:
        _origin(name, "endpoint_url", text["endpoint_url"])
    return S3Key(**text, trusted_prefixes_apply=trusted)


def _parse_http(name: str, entry: dict[str, Any], trusted: bool) -> HttpKey:
    headers = entry.get("headers") or {}
    if isinstance(headers, str):
        headers = _inner(name, "headers", headers)
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise BadStorageConfig(f"storage key {name!r}: headers is a mapping of header names to text")
    origin = _origin(name, "url", _text(name, entry, "url"))
    certificate = _text(name, entry, "certificate") if entry.get("certificate") else ""
    return HttpKey(origin, {str(key): value for key, value in headers.items()}, certificate, trusted)


def _text(name: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise BadStorageConfig(f"storage key {name!r}: field {key} must be text (quote it) and not empty")
    return value


def _origin(name: str, field_name: str, url: str) -> str:
    origin = origin_of(url)
    if origin is None:
        raise BadStorageConfig(f"storage key {name!r}: {field_name} must be http(s)://host[:port][/path]")
    return origin


def origin_of(url: str) -> str | None:
    """`scheme://host:port` of an http(s) URL; None if it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname.rstrip(".")
    return f"{parts.scheme}://{host}:{port or (443 if parts.scheme == 'https' else 80)}"


def _kind_of(key: StorageKey) -> str:
    match key:
        case S3Key():
            return "s3"
        case HttpKey():
            return "http"
        case UnsupportedKey(type=kind):
            return kind


def _check_kind(key: StorageKey, kind: str, name: str) -> None:
    if _kind_of(key) != kind:
        raise ArtifactDenied(
            f"storage_key {name[:80]!r} is of type {_kind_of(key)}, and the uri is of type {kind}; "
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
