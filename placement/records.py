"""What is kept of a model and of an alias: values, their checks, and their JSON.

Every stored value is a JSON object with `"v": 1`. A higher version is refused with a clear error, never guessed at.
Unknown fields of version 1 are ignored, and are lost when this pod writes the record again: whoever adds a field
whose loss would matter raises the version. Fields that have their default are not written, so that ten thousand
ordinary records stay small. Tenant and id are not in the value: the key is the one place that says them.

A record that exists is valid: the checks run when the value is made, so nothing later repeats them.

Deliberately absent: credentials (a spec names a storage key), and anything measured or resident (`profiles/`,
`copies/`), so that traffic never rewrites a registration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from inspect import signature
from typing import Any, cast

from placement.errors import InvalidName, InvalidSpec, PlacementError, UnsupportedRecord
from placement.keys import check_id
from placement.record_checks import check_int, check_seconds, check_texts, check_uri, check_word
from placement.shared_values import NO_TEXTS, shared_texts
from placement.spec_terms import Isolation, Terms, checksum_in, pack, shared_terms, texts_in

RECORD_VERSION = 1

PIPELINE_FORMAT = "pipeline"
"""Of a graph of models, registered under a name as they are (`mesh.pipelines`)."""
WEIGHTS_MAX = 16
"""Models that one alias splits its traffic over: changing them all is one transaction of the store."""
PRIORITY_LIMIT = 2**31
BYTES_LIMIT = 2**63
BATCH_ROWS_LIMIT = 65_536
BATCH_DELAY_MAX_S = 10.0

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")


class ModelSpec:
    """What an operator says of a model; never changes. None always means: not said, the default of format or pod
    applies. How it lies in memory: `placement.spec_terms`.
    """

    __slots__ = ("_capacity_hint_bytes", "_own", "_parameters", "_terms")

    def __init__(
        self,
        uri: str,
        format: str | None = None,
        storage_key: str | None = None,
        capacity_hint_bytes: int | None = None,
        labels: Mapping[str, str] = NO_TEXTS,
        priority: int = 0,
        pinned: bool = False,
        copies_min: int = 0,
        copies_max: int | None = None,
        ttl_s: float | None = None,
        checksum: str | None = None,
        isolation: Isolation | None = None,
        parameters: Mapping[str, str] = NO_TEXTS,
        load_timeout_s: float | None = None,
        batch_rows_max: int | None = None,
        batch_delay_s: float | None = None,
    ) -> None:
        """Raises InvalidSpec, naming the field."""
        check_uri(uri)
        if format is not None:
            check_word("format", format)
        if storage_key is not None:
            check_word("storage_key", storage_key)
        if capacity_hint_bytes is not None:
            check_int("capacity_hint_bytes", capacity_hint_bytes, 1, BYTES_LIMIT - 1)
        if priority != 0 or type(priority) is not int:
            check_int("priority", priority, -PRIORITY_LIMIT, PRIORITY_LIMIT - 1)
        if type(pinned) is not bool:
            raise InvalidSpec(f"pinned is {pinned!r}; it must be true or false")
        if copies_min != 0 or type(copies_min) is not int:
            check_int("copies_min", copies_min, 0, 10_000)
        if copies_max is not None:
            check_int("copies_max", copies_max, 1, 10_000)
            if copies_max < copies_min:
                raise InvalidSpec(
                    f"copies_max is {copies_max}, below copies_min {copies_min}; raise one or lower the other"
                )
        if ttl_s is not None:
            check_seconds("ttl_s", ttl_s)
        if load_timeout_s is not None:
            check_seconds("load_timeout_s", load_timeout_s)
        if batch_rows_max is not None:
            check_int("batch_rows_max", batch_rows_max, 1, BATCH_ROWS_LIMIT)
        if batch_delay_s is not None:
            check_seconds("batch_delay_s", batch_delay_s, BATCH_DELAY_MAX_S)
        if checksum is not None and (not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum)):
            raise InvalidSpec(
                f"checksum is {str(checksum)[:80]!r}; write sha256: and the 64 lower-case hex digits that "
                "`sha256sum` prints"
            )
        if isolation not in (None, "none", "process"):
            raise InvalidSpec(
                f"isolation is {str(isolation)[:40]!r}; allowed are 'none' and 'process', or leave it out"
            )
        if labels:
            check_texts("labels", labels)
        if parameters:
            check_texts("parameters", parameters)
        label_names = tuple(sorted(labels)) if labels else ()
        self._terms = shared_terms(
            Terms(
                format,
                storage_key,
                priority,
                pinned,
                copies_min,
                copies_max,
                ttl_s,
                isolation,
                load_timeout_s,
                batch_rows_max,
                batch_delay_s,
                checksum is not None,
                label_names,
            )
        )
        self._own = pack(checksum, [uri, *[labels[name] for name in label_names]])
        self._capacity_hint_bytes = capacity_hint_bytes
        self._parameters = shared_texts(parameters)

    @property
    def uri(self) -> str:
        """Where the artifact lies: file://, http(s)://, s3://."""
        return texts_in(self._own, self._terms, 1)[0]

    @property
    def format(self) -> str | None:
        """None: found out from the artifact."""
        return self._terms.format

    @property
    def has_copies(self) -> bool:
        """Whether there is anything to load and to place: a pipeline only asks models."""
        return self._terms.format != PIPELINE_FORMAT

    @property
    def storage_key(self) -> str | None:
        """Names stored credentials; never holds any."""
        return self._terms.storage_key

    @property
    def capacity_hint_bytes(self) -> int | None:
        """Size of a loaded copy."""
        return self._capacity_hint_bytes

    @property
    def labels(self) -> Mapping[str, str]:
        """What operators say of the model, for themselves and for where it may be placed."""
        names = self._terms.label_names
        return dict(zip(names, texts_in(self._own, self._terms)[1:], strict=True)) if names else NO_TEXTS

    def label(self, name: str) -> str | None:
        """One label, at no cost when there is none of this name."""
        names = self._terms.label_names
        return texts_in(self._own, self._terms)[1 + names.index(name)] if name in names else None

    @property
    def priority(self) -> int:
        """Higher is kept longer."""
        return self._terms.priority

    @property
    def pinned(self) -> bool:
        """Loaded always, never evicted."""
        return self._terms.pinned

    @property
    def copies_min(self) -> int:
        """So many copies are kept, whether they are asked for or not."""
        return self._terms.copies_min

    @property
    def copies_max(self) -> int | None:
        """At most so many copies."""
        return self._terms.copies_max

    @property
    def ttl_s(self) -> float | None:
        """Unload a copy that no request has used for so long."""
        return self._terms.ttl_s

    @property
    def checksum(self) -> str | None:
        """`sha256:<64 hex digits>` of the artifact."""
        return checksum_in(self._own) if self._terms.has_checksum else None

    @property
    def isolation(self) -> Isolation | None:
        """`process`: run in a subprocess. None: what the format needs."""
        return self._terms.isolation

    @property
    def parameters(self) -> Mapping[str, str]:
        """The adapter's own."""
        return self._parameters

    @property
    def load_timeout_s(self) -> float | None:
        """Most that a load may take."""
        return self._terms.load_timeout_s

    @property
    def batch_rows_max(self) -> int | None:
        """The most rows of several requests in one run; 1: never together."""
        return self._terms.batch_rows_max

    @property
    def batch_delay_s(self) -> float | None:
        """How long a request may be kept for others to run with."""
        return self._terms.batch_delay_s

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelSpec):
            return NotImplemented
        return (
            self._own == other._own
            and self._terms == other._terms
            and self._capacity_hint_bytes == other._capacity_hint_bytes
            and self._parameters == other._parameters
        )

    def __hash__(self) -> int:
        return hash((self._own, self._terms))

    def __repr__(self) -> str:
        return f"ModelSpec({', '.join(f'{name}={value!r}' for name, value in spec_to_mapping(self).items())})"

    def replaced(self, **changes: Any) -> ModelSpec:
        """The same but for these fields. Raises InvalidSpec."""
        return ModelSpec(**{**spec_to_mapping(self), **changes})

    def differences(self, other: ModelSpec) -> tuple[str, ...]:
        """Names of the fields in which two specs differ."""
        return tuple(name for name in _SPEC_FIELDS if getattr(self, name) != getattr(other, name))


_SPEC_FIELDS = tuple(signature(ModelSpec).parameters)
_SPEC_FIELD_SET = frozenset(_SPEC_FIELDS)
_SPEC_DEFAULTS = tuple((p.name, p.default) for p in signature(ModelSpec).parameters.values() if p.name != "uri")


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
            check_word("owner", self.owner)
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
            ModelSpec(**spec_data),
            generation,
            registered_at_s,
            registered_at_s if generation_at_s == registered_at_s else generation_at_s,
            data.get("auto_delete") is True,
            revision,
        )
    except (KeyError, TypeError, ValueError, AttributeError, PlacementError) as error:
        raise _unreadable("model", tenant, model_id, error) from error


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
    return replace(record, spec=record.spec.replaced(pinned=pinned))


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
        check_int(f"weights[{model_id!r}]", weight, 0, 1_000_000)
    if not any(weights.values()):
        raise InvalidSpec("weights are all 0, so nothing would serve; give at least one model a share above 0")
    if active not in weights:
        raise InvalidSpec(f"weights leave out the active model {active!r}; give it a share, 0 if it is to get none")
