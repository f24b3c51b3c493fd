"""What is kept of a model and of an alias: values, their checks, and their JSON.

Every stored value is a JSON object with `"v": 1`. A higher version is refused with a clear error, never guessed at.
Unknown fields of version 1 are ignored, and are lost when this pod writes the record again: whoever adds a field
whose loss would matter raises the version. Fields that have their default are not written, so that ten thousand
ordinary records stay small. Tenant and id are not in the value: the key is the one place that says them.

A record that exists is valid: the checks run when the value is made, so nothing later repeats them. They are plain
code and not a schema library, since every registration and every start of a pod runs them for every model.

Deliberately absent: credentials (a spec names a storage key), and anything measured or resident (`profiles/`,
`copies/`), so that traffic never rewrites a registration.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Literal, cast

from placement.errors import InvalidName, InvalidSpec, PlacementError, UnsupportedRecord
from placement.keys import check_id
from placement.shared_values import NO_TEXTS, shared_text, shared_texts

RECORD_VERSION = 1

URI_LENGTH_MAX = 4096
WORD_LENGTH_MAX = 256
"""Of formats, storage keys, owners, and the names of labels and parameters."""
VALUE_LENGTH_MAX = 4096
"""Of the values of labels and parameters, and of failure messages."""
ENTRIES_MAX = 128
"""Of labels and parameters, each."""
WEIGHTS_MAX = 16
"""Models that one alias splits its traffic over: changing them all is one transaction of the store."""
PRIORITY_LIMIT = 2**31
BYTES_LIMIT = 2**63
SECONDS_MAX = 10 * 365 * 86_400.0

Isolation = Literal["none", "process"]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")
_URI_PASSWORD = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]*:[^/?#]*@")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What an operator says of a model. None always means: not said, the default of format or pod applies."""

    uri: str
    """Where the artifact lies: file://, http(s)://, s3://."""
    format: str | None = None
    """None: found out from the artifact."""
    storage_key: str | None = None
    """Names stored credentials; never holds any."""
    capacity_hint_bytes: int | None = None
    """Size of a loaded copy."""
    labels: Mapping[str, str] = field(default_factory=lambda: NO_TEXTS, hash=False)
    priority: int = 0
    """Higher is kept longer."""
    pinned: bool = False
    """Loaded always, never evicted."""
    copies_min: int = 0
    copies_max: int | None = None
    ttl_s: float | None = None
    """Unload a copy that no request has used for so long."""
    checksum: str | None = None
    """`sha256:<64 hex digits>` of the artifact."""
    isolation: Isolation | None = None
    """`process`: run in a subprocess. None: what the format needs."""
    parameters: Mapping[str, str] = field(default_factory=lambda: NO_TEXTS, hash=False)
    """The adapter's own."""
    load_timeout_s: float | None = None

    def __post_init__(self) -> None:
        _check_uri(self.uri)
        if self.format is not None:
            _check_word("format", self.format)
        if self.storage_key is not None:
            _check_word("storage_key", self.storage_key)
        if self.capacity_hint_bytes is not None:
            _check_int("capacity_hint_bytes", self.capacity_hint_bytes, 1, BYTES_LIMIT - 1)
        if self.priority != 0 or type(self.priority) is not int:
            _check_int("priority", self.priority, -PRIORITY_LIMIT, PRIORITY_LIMIT - 1)
        if type(self.pinned) is not bool:
            raise InvalidSpec(f"pinned is {self.pinned!r}; it must be true or false")
        if self.copies_min != 0 or type(self.copies_min) is not int:
            _check_int("copies_min", self.copies_min, 0, 10_000)
        if self.copies_max is not None:
            _check_int("copies_max", self.copies_max, 1, 10_000)
            if self.copies_max < self.copies_min:
                raise InvalidSpec(
                    f"copies_max is {self.copies_max}, below copies_min {self.copies_min}; raise one or lower the other"
                )
        if self.ttl_s is not None:
            _check_seconds("ttl_s", self.ttl_s)
        if self.load_timeout_s is not None:
            _check_seconds("load_timeout_s", self.load_timeout_s)
        if self.checksum is not None and (not isinstance(self.checksum, str) or not _CHECKSUM.fullmatch(self.checksum)):
            raise InvalidSpec(
                f"checksum is {str(self.checksum)[:80]!r}; write sha256: and the 64 lower-case hex digits that "
                "`sha256sum` prints"
            )
        if self.isolation not in (None, "none", "process"):
            raise InvalidSpec(
                f"isolation is {str(self.isolation)[:40]!r}; allowed are 'none' and 'process', or leave it out"
            )
        if self.labels:
            _check_texts("labels", self.labels)
        if self.parameters:
            _check_texts("parameters", self.parameters)

    def differences(self, other: ModelSpec) -> tuple[str, ...]:
        """Names of the fields in which two specs differ."""
        return tuple(name for name in _SPEC_FIELDS if getattr(self, name) != getattr(other, name))


_SPEC_FIELDS = tuple(f.name for f in fields(ModelSpec))
_SPEC_FIELD_SET = frozenset(_SPEC_FIELDS)
_SPEC_DEFAULTS: tuple[tuple[str, Any], ...] = tuple(
    (f.name, {} if f.name in ("labels", "parameters") else f.default) for f in fields(ModelSpec) if f.name != "uri"
)


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A registered model."""

    tenant: str
    id: str
    spec: ModelSpec
    generation: int
    """Counts the specs that this id has had, from 1; what clients see as `model_version`."""
    registered_at_s: float
    """Unix time of the first registration."""
    generation_at_s: float
    """Unix time of this generation's."""
    auto_delete: bool = False
    """Unregistered when the last alias that points at it lets go."""
    revision: int = 0
    """The store's revision of this record; 0 where it was not read from one. Not stored."""


class AliasState(Enum):
    """Where an alias stands; ModelMesh's names."""

    DEFINED = "defined"
    TRANSITIONING = "transitioning"
    TRANSITION_FAILED = "transition-failed"


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """A name that points at one model, or splits traffic over several by weight.

    `active` serves; `target` is where the alias is going, and equals `active` when it is there. While they differ,
    `failure` says why the last try to get there ended, or is None. `weights` (model id -> share), when not empty,
    splits the traffic and `active` is one of them.
    """

    tenant: str
    id: str
    active: str
    target: str
    owner: str = ""
    """Who may change it: ModelMesh's way to keep two controllers apart. Empty: nobody in particular."""
    weights: Mapping[str, int] = field(default_factory=dict, hash=False)
    failure: str | None = None
    changed_at_s: float = 0.0
    revision: int = 0
    """As in ModelRecord."""

    def __post_init__(self) -> None:
        check_id(self.active)
        check_id(self.target)
        if self.owner:
            _check_word("owner", self.owner)
        if self.failure is not None and not isinstance(self.failure, str):
            raise InvalidSpec(f"failure is {type(self.failure).__name__}; it must be text or left out")
        if self.weights:
            _check_weights(self.weights, self.active)

    @property
    def state(self) -> AliasState:
        """DEFINED, TRANSITIONING or TRANSITION_FAILED."""
        if self.active == self.target:
            return AliasState.DEFINED
        return AliasState.TRANSITIONING if self.failure is None else AliasState.TRANSITION_FAILED

    @property
    def referenced(self) -> frozenset[str]:
        """Ids of all models that must not go while this alias stands."""
        return frozenset((self.active, self.target, *self.weights))

    def choose(self, draw: float) -> str:
        """The model that serves a request; `draw` in [0, 1) decides among weights, the caller brings the chance."""
        if not self.weights:
            return self.active
        point = draw * sum(self.weights.values())
        for model_id, weight in sorted(self.weights.items()):
            point -= weight
            if point < 0:
                return model_id
        return self.active


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A model was unregistered: a lagging pod must not bring it back, and its generations go on from here."""

    tenant: str
    id: str
    generation: int
    unregistered_at_s: float


# To and from JSON ---------------------------------------------------------------------------------------------------


def spec_to_mapping(spec: ModelSpec) -> dict[str, Any]:
    """The fields that differ from their defaults, and `uri`."""
    out: dict[str, Any] = {"uri": spec.uri}
    for name, default in _SPEC_DEFAULTS:
        value = getattr(spec, name)
        if value != default:
            out[name] = dict(value) if isinstance(value, Mapping) else value
    return out


def spec_from_mapping(data: Mapping[str, Any]) -> ModelSpec:
    """A spec that a person or a client wrote: a field that does not exist is an error, because it is a typing error."""
    if unknown := [name for name in data if name not in _SPEC_FIELD_SET]:
        raise InvalidSpec(f"field {unknown[0]!r} does not exist in a model's spec; known are {', '.join(_SPEC_FIELDS)}")
    if "uri" not in data:
        raise InvalidSpec("uri is missing; say where the artifact lies (file://, http(s):// or s3://)")
    return ModelSpec(**data)


def model_to_json(record: ModelRecord) -> bytes:
    """The stored form of a model."""
    out: dict[str, Any] = {
        "v": RECORD_VERSION,
        "generation": record.generation,
        "registered_at_s": record.registered_at_s,
        "generation_at_s": record.generation_at_s,
        "spec": spec_to_mapping(record.spec),
    }
    if record.auto_delete:
        out["auto_delete"] = True
    return _dump(out)


def model_from_json(tenant: str, model_id: str, value: bytes, revision: int = 0) -> ModelRecord:
    """Raises UnsupportedRecord, naming tenant, id and field."""
    data = _parse("model", tenant, model_id, value)
    try:
        spec_data = data["spec"]
        if not spec_data.keys() <= _SPEC_FIELD_SET:
            spec_data = {name: given for name, given in spec_data.items() if name in _SPEC_FIELD_SET}
        generation = data["generation"]
        if type(generation) is not int or generation < 1:
            raise InvalidSpec(f"generation is {generation!r}; it must be a whole number from 1")
        registered_at_s, generation_at_s = float(data["registered_at_s"]), float(data["generation_at_s"])
        return ModelRecord(
            tenant,
            model_id,
            ModelSpec(**_sharing(spec_data)),
            generation,
            registered_at_s,
            registered_at_s if generation_at_s == registered_at_s else generation_at_s,
            data.get("auto_delete") is True,
            revision,
        )
    except (KeyError, TypeError, ValueError, AttributeError, PlacementError) as error:
        raise _unreadable("model", tenant, model_id, error) from error


def _sharing(spec_data: dict[str, Any]) -> dict[str, Any]:
    """The same fields, with what recurs from model to model in memory once. What is wrong with them, the spec says."""
    for name in ("format", "storage_key", "isolation"):
        if isinstance(value := spec_data.get(name), str):
            spec_data[name] = shared_text(value)
    for name in ("labels", "parameters"):
        if isinstance(entries := spec_data.get(name), dict):
            with contextlib.suppress(TypeError):
                spec_data[name] = shared_texts(entries)
    return spec_data


def alias_to_json(record: AliasRecord) -> bytes:
    """The stored form of an alias."""
    out: dict[str, Any] = {
        "v": RECORD_VERSION,
        "active": record.active,
        "target": record.target,
        "changed_at_s": record.changed_at_s,
    }
    if record.owner:
        out["owner"] = record.owner
    if record.weights:
        out["weights"] = dict(record.weights)
    if record.failure is not None:
        out["failure"] = record.failure
    return _dump(out)


def alias_from_json(tenant: str, alias_id: str, value: bytes, revision: int = 0) -> AliasRecord:
    """Raises UnsupportedRecord, naming tenant, id and field."""
    data = _parse("alias", tenant, alias_id, value)
    try:
        return AliasRecord(
            tenant,
            alias_id,
            data["active"],
            data["target"],
            data.get("owner", ""),
            data.get("weights", {}),
            data.get("failure"),
            float(data["changed_at_s"]),
            revision,
        )
    except (KeyError, TypeError, ValueError, PlacementError) as error:
        raise _unreadable("alias", tenant, alias_id, error) from error


def tombstone_to_json(tombstone: Tombstone) -> bytes:
    """The stored form of a tombstone."""
    return _dump(
        {
            "v": RECORD_VERSION,
            "generation": tombstone.generation,
            "unregistered_at_s": tombstone.unregistered_at_s,
        }
    )


def tombstone_from_json(tenant: str, model_id: str, value: bytes) -> Tombstone:
    """Raises UnsupportedRecord, naming tenant, id and field."""
    data = _parse("tombstone", tenant, model_id, value)
    try:
        return Tombstone(tenant, model_id, int(data["generation"]), float(data["unregistered_at_s"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable("tombstone", tenant, model_id, error) from error


def with_pinned(record: ModelRecord, pinned: bool) -> ModelRecord:
    """The same generation, pinned or not: what is served does not change."""
    return replace(record, spec=replace(record.spec, pinned=pinned))


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _dump(data: dict[str, Any]) -> bytes:
    return _encoder.encode(data).encode()


def _parse(kind: str, tenant: str, name: str, value: bytes) -> dict[str, Any]:
    try:
        data = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _unreadable(kind, tenant, name, error) from error
    version = data.get("v") if isinstance(data, dict) else None
    if type(version) is not int:
        raise _unreadable(kind, tenant, name, InvalidSpec("it has no version field `v`"))
    if version > RECORD_VERSION:
        raise UnsupportedRecord(
            f"the record of {kind} {name!r} (tenant {tenant!r}) has version {version}, and this hexcomb reads up to "
            f"{RECORD_VERSION}: it was written by a newer one; upgrade this pod"
        )
    return cast("dict[str, Any]", data)


def _unreadable(kind: str, tenant: str, name: str, error: Exception) -> UnsupportedRecord:
    found = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
    return UnsupportedRecord(
        f"the record of {kind} {name!r} (tenant {tenant!r}) cannot be read: {found}; delete its key in the store and "
        "register it again"
    )


# Checks of single fields --------------------------------------------------------------------------------------------


def _check_uri(uri: str) -> None:
    if not isinstance(uri, str) or not uri:
        raise InvalidSpec(
            "uri is empty; say where the artifact lies (file://, http(s):// or s3://)"
            if uri == ""
            else f"uri is {type(uri).__name__}; it must be text"
        )
    if len(uri) > URI_LENGTH_MAX:
        raise InvalidSpec(f"uri has {len(uri)} characters; at most {URI_LENGTH_MAX} are allowed: shorten the path")
    if bad := _CONTROL.search(uri):
        raise InvalidSpec(f"uri holds {bad[0]!a} at position {bad.start()}; percent-encode or remove it")
    if "@" in uri and _URI_PASSWORD.match(uri):
        raise InvalidSpec("uri holds a password before the @; put credentials under a storage key and name that key")


def _check_word(name: str, value: str) -> None:
    if not isinstance(value, str):
        raise InvalidSpec(f"{name} is {type(value).__name__}; it must be text")
    if not value or len(value) > WORD_LENGTH_MAX:
        raise InvalidSpec(f"{name} has {len(value)} characters; 1 to {WORD_LENGTH_MAX} are allowed, or leave it out")
    if bad := _CONTROL.search(value):
        raise InvalidSpec(f"{name} holds {bad[0]!a} at position {bad.start()}; remove it")


def _check_int(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int:
        raise InvalidSpec(f"{name} is {str(value)[:40]!r}; it must be a whole number from {low} to {high}")
    if not low <= value <= high:
        raise InvalidSpec(f"{name} is {value}; allowed is {low} to {high}")


def _check_seconds(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidSpec(f"{name} is {str(value)[:40]!r}; it must be a number of seconds")
    if not 0 < value <= SECONDS_MAX:
        raise InvalidSpec(f"{name} is {value}; allowed is above 0 up to {SECONDS_MAX:.0f} seconds, or leave it out")


def _check_texts(name: str, entries: Mapping[str, str]) -> None:
    if not isinstance(entries, Mapping):
        raise InvalidSpec(f"{name} is {type(entries).__name__}; it must map names to texts")
    if len(entries) > ENTRIES_MAX:
        raise InvalidSpec(f"{name} has {len(entries)} entries; at most {ENTRIES_MAX} are allowed")
    for key, value in entries.items():
        _check_word(f"a name in {name}", key)
        if not isinstance(value, str):
            raise InvalidSpec(f"{name}[{key!r}] is {type(value).__name__}; it must be text: put it in quotes")
        if len(value) > VALUE_LENGTH_MAX:
            raise InvalidSpec(f"{name}[{key!r}] has {len(value)} characters; at most {VALUE_LENGTH_MAX} are allowed")
        if not value.isascii() and (bad := _SURROGATE.search(value)):
            raise InvalidSpec(f"{name}[{key!r}] holds {bad[0]!a} at position {bad.start()}, which is no character")


def _check_weights(weights: Mapping[str, int], active: str) -> None:
    if not isinstance(weights, Mapping):
        raise InvalidSpec(f"weights is {type(weights).__name__}; it must map model ids to shares")
    if len(weights) > WEIGHTS_MAX:
        raise InvalidSpec(f"weights has {len(weights)} entries; at most {WEIGHTS_MAX} are allowed")
    for model_id, weight in weights.items():
        try:
            check_id(model_id)
        except InvalidName as error:
            raise InvalidSpec(f"weights names a model that cannot exist: {error}") from error
        _check_int(f"weights[{model_id!r}]", weight, 0, 1_000_000)
    if not any(weights.values()):
        raise InvalidSpec("weights are all 0, so nothing would serve; give at least one model a share above 0")
    if active not in weights:
        raise InvalidSpec(f"weights leave out the active model {active!r}; give it a share, 0 if it is to get none")
