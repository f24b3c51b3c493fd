"""The JSON of what pods publish: themselves, copies, what is on disk, failures, intents; and what the leader keeps.

As in `placement.records`: every value is an object with `"v": 1`, a higher version is refused, unknown fields are
ignored, fields with their default are not written, and what the key says is not said again. A copy's record is some
60 bytes, since there are as many as there are models in memory.

Anybody with access to the store can write anything there. So every field is checked when it is read, and what cannot
be read raises UnsupportedRecord with the reason; whoever follows the store logs it and goes on without that record.

`settled` in a pod's record: false while a pod that lost its lease writes its copies again, so that those who kept
them in the meantime (`placement.pool_view`, fading) know when what is missing is truly gone.

Words that recur in every record (pods, formats, labels) are shared in memory.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from placement.errors import UnsupportedRecord
from placement.policy.snapshot import (
    BusyModel,
    Copy,
    Death,
    Intent,
    LoadFailure,
    ModelName,
    Parked,
    Pod,
    Suspicion,
    Tier,
    Verdict,
)

RECORD_VERSION = 1

TIERS_MAX = 17
"""Of a pod: the host's memory and sixteen GPUs'."""
BUSY_MODELS_MAX = 64
"""In a pod's record, which it writes up to once a second and every pod reads: about 5 kB of it."""
HOT_MODELS_MAX = 1000
"""About 60 kB, written once a minute."""
DEATHS_MAX = 16
"""Kept with a suspicion; two are enough to quarantine."""
MESSAGE_LENGTH_MAX = 2000
"""Characters of a failure's message; longer ones are cut when they are written."""
TEXT_LENGTH_MAX = 4096
WORDS_MAX = 256
"""Labels, and formats, of a pod."""
NUMBER_MAX = 2.0**63

_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """Who runs the placement service, on that pod's lease."""

    pod: str
    incarnation: str
    since_at_s: float
    restoring: bool = False
    """It is writing back the registrations of a store that lost them; until it has, what is missing is not gone."""


@dataclass(frozen=True, slots=True)
class HotModel:
    """One of the models with the most requests, over all pods."""

    name: ModelName
    rate_per_s: float


# Writing ------------------------------------------------------------------------------------------------------------


def pod_to_json(pod: Pod, *, settled: bool = True) -> bytes:
    """The stored form of a pod; only the first BUSY_MODELS_MAX busy models are kept."""
    out: dict[str, Any] = {"v": RECORD_VERSION, "incarnation": pod.incarnation, "address": pod.address}
    for name, default in _POD_PLAIN:
        value = getattr(pod, name)
        if value != default:
            out[name] = value
    for name in ("labels", "formats"):
        if words := getattr(pod, name):
            out[name] = sorted(words)
    if pod.tiers:
        out["tiers"] = [[t.tier, t.device, t.capacity_bytes, t.free_bytes] for t in pod.tiers[:TIERS_MAX]]
    if pod.busy:
        out["busy"] = [
            [b.name.tenant, b.name.id, b.rate_per_s, b.in_flight, b.queue_delay_s, b.run_s, b.concurrency]
            for b in pod.busy[:BUSY_MODELS_MAX]
        ]
    if not settled:
        out["settled"] = False
    return _dump(out)


def copy_to_json(copy: Copy) -> bytes:
    """The stored form of a copy."""
    out: dict[str, Any] = {"v": RECORD_VERSION}
    for name in ("servable", "loading", "size_bytes"):
        if value := getattr(copy, name):
            out[name] = value
    out["since_at_s"] = copy.since_at_s
    return _dump(out)


def parked_to_json(parked: Parked) -> bytes:
    """The stored form of what a pod keeps of a model below its memory."""
    out: dict[str, Any] = {"v": RECORD_VERSION, "disk": parked.disk}
    if parked.disk_load_s:
        out["disk_load_s"] = parked.disk_load_s
    return _dump(out)


def failure_to_json(failure: LoadFailure) -> bytes:
    """The stored form of a failed load."""
    out: dict[str, Any] = {
        "v": RECORD_VERSION,
        "generation": failure.generation,
        "message": failure.message[:MESSAGE_LENGTH_MAX],
        "failed_at_s": failure.failed_at_s,
    }
    if failure.permanent:
        out["permanent"] = True
    else:
        out["retry_after_s"] = failure.retry_after_s
    return _dump(out)


def intent_to_json(intent: Intent) -> bytes:
    """The stored form of an intent."""
    return _dump({"v": RECORD_VERSION, "generation": intent.generation, "doing": intent.doing, "at_s": intent.at_s})


def suspicion_to_json(suspicion: Suspicion) -> bytes:
    """The stored form of a suspicion; of many deaths the last are kept."""
    deaths = [[d.pod, d.incarnation, d.doing, d.at_s] for d in suspicion.deaths[-DEATHS_MAX:]]
    return _dump(
        {
            "v": RECORD_VERSION,
            "generation": suspicion.generation,
            "verdict": suspicion.verdict.value,
            "deaths": deaths,
        }
    )


def leader_to_json(leader: LeaderRecord) -> bytes:
    """The stored form of the leader's key."""
    out: dict[str, Any] = {
        "v": RECORD_VERSION,
        "pod": leader.pod,
        "incarnation": leader.incarnation,
        "since_at_s": leader.since_at_s,
    }
    if leader.restoring:
        out["restoring"] = True
    return _dump(out)


def hot_to_json(models: tuple[HotModel, ...]) -> bytes:
    """The stored form of the hottest models, hottest first."""
    return _dump(
        {"v": RECORD_VERSION, "models": [[m.name.tenant, m.name.id, m.rate_per_s] for m in models[:HOT_MODELS_MAX]]}
    )


# Reading: each raises UnsupportedRecord, naming the field -----------------------------------------------------------


def pod_from_json(pod_id: str, value: bytes) -> tuple[Pod, bool]:
    """A pod, and whether all that it holds is published (`settled`)."""
    data = _parse(value)
    return _build(lambda: (_pod(pod_id, data), _flag(data, "settled", default=True)))


def copy_from_json(pod_id: str, value: bytes) -> Copy:
    """A copy."""
    data = _parse(value)
    copy = _build(
        lambda: Copy(
            pod_id,
            _count(data, "servable"),
            _count(data, "loading"),
            _count(data, "size_bytes"),
            _number(data, "since_at_s"),
        )
    )
    if not copy.servable and not copy.loading:
        raise UnsupportedRecord("it neither serves nor loads any generation")
    return copy


def parked_from_json(pod_id: str, value: bytes) -> Parked:
    """What a pod keeps of a model below its memory."""
    data = _parse(value)
    return _build(lambda: Parked(pod_id, _count(data, "disk", least=1), _number(data, "disk_load_s")))


def failure_from_json(pod_id: str, value: bytes) -> LoadFailure:
    """A failed load."""
    data = _parse(value)
    return _build(
        lambda: LoadFailure(
            pod_id,
            _count(data, "generation", least=1),
            _flag(data, "permanent"),
            _text(data, "message"),
            _number(data, "failed_at_s"),
            _number(data, "retry_after_s"),
        )
    )


def intent_from_json(pod_id: str, incarnation: str, value: bytes) -> Intent:
    """An intent; pod and incarnation are in its key."""
    data = _parse(value)
    return _build(
        lambda: Intent(
            pod_id,
            incarnation,
            _count(data, "generation", least=1),
            _doing(_text(data, "doing")),
            _number(data, "at_s"),
        )
    )


def suspicion_from_json(value: bytes) -> Suspicion:
    """A suspicion."""
    data = _parse(value)

    def build() -> Suspicion:
        deaths = tuple(
            Death(_as_text(pod, "deaths"), _as_text(incarnation, "deaths"), _doing(doing), _as_number(at_s, "deaths"))
            for pod, incarnation, doing, at_s in _rows(data, "deaths", 4, DEATHS_MAX)
        )
        return Suspicion(_count(data, "generation", least=1), Verdict(_text(data, "verdict")), deaths)

    return _build(build)


def leader_from_json(value: bytes) -> LeaderRecord:
    """The leader's key."""
    data = _parse(value)
    return _build(
        lambda: LeaderRecord(
            _text(data, "pod", required=True),
            _text(data, "incarnation", required=True),
            _number(data, "since_at_s"),
            _flag(data, "restoring"),
        )
    )


def hot_from_json(value: bytes) -> tuple[HotModel, ...]:
    """The hottest models, hottest first."""
    data = _parse(value)
    return _build(
        lambda: tuple(
            HotModel(ModelName(_as_text(tenant, "models"), _as_text(model_id, "models")), _as_number(rate, "models"))
            for tenant, model_id, rate in _rows(data, "models", 3, HOT_MODELS_MAX)
        )
    )


_POD_TEXTS = ("version", "zone", "why_unready", "peer_key", "peer_address", "peer_socket")
_POD_COUNTS = (
    "capacity_bytes",
    "free_bytes",
    "pinned_bytes",
    "loads_queued",
    "requests_in_flight",
    "loads",
    "load_failures",
)
_POD_NUMBERS = ("eviction_age_s", "load_wait_s", "queue_delay_s", "rate_per_s", "started_at_s")
_POD_FLAGS = ("ready", "draining")
_POD_PLAIN: tuple[tuple[str, Any], ...] = (
    *((name, "") for name in _POD_TEXTS),
    *((name, 0) for name in (*_POD_COUNTS, *_POD_NUMBERS)),
    *((name, False) for name in _POD_FLAGS),
)


def _pod(pod_id: str, data: Mapping[str, Any]) -> Pod:
    plain: dict[str, Any] = {name: _text(data, name) for name in _POD_TEXTS}
    plain |= {name: _count(data, name) for name in _POD_COUNTS}
    plain |= {name: _number(data, name) for name in _POD_NUMBERS}
    plain |= {name: _flag(data, name) for name in _POD_FLAGS}
    busy = tuple(
        BusyModel(
            ModelName(_as_text(tenant, "busy"), _as_text(model_id, "busy")),
            _as_number(rate, "busy"),
            _as_number(in_flight, "busy"),
            _as_number(delay, "busy"),
            _as_number(run, "busy"),
            _as_count(concurrency, "busy", least=1),
        )
        for tenant, model_id, rate, in_flight, delay, run, concurrency in _rows(data, "busy", 7, BUSY_MODELS_MAX)
    )
    tiers = tuple(
        Tier(_as_text(tier, "tiers"), _as_text(device, "tiers"), _as_count(capacity, "tiers"), _as_count(free, "tiers"))
        for tier, device, capacity, free in _rows(data, "tiers", 4, TIERS_MAX)
    )
    return Pod(
        pod_id,
        _text(data, "incarnation", required=True),
        _text(data, "address", required=True),
        labels=_words(data, "labels"),
        formats=_words(data, "formats"),
        busy=busy,
        tiers=tiers,
        **plain,
    )


def _doing(value: object) -> str:
    if value == "loading":
        return "loading"
    if value == "running":
        return "running"
    if value == "crashed":
        return "crashed"
    raise ValueError(f"doing is {str(value)[:40]!r}; it must be 'loading', 'running' or 'crashed'")


# Single fields ------------------------------------------------------------------------------------------------------

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _dump(data: dict[str, Any]) -> bytes:
    # A message may quote a file name that is not Unicode; one `?` in it is better than no message.
    return _encoder.encode(data).encode(errors="replace")


def _parse(value: bytes) -> dict[str, Any]:
    try:
        data = json.loads(value.decode())
    except (ValueError, RecursionError) as error:
        raise UnsupportedRecord(f"it is not JSON: {error}") from error
    version = data.get("v") if isinstance(data, dict) else None
    if type(version) is not int:
        raise UnsupportedRecord("it has no version field `v`")
    if version > RECORD_VERSION:
        raise UnsupportedRecord(
            f"it has version {version}, and this hexcomb reads up to {RECORD_VERSION}: it was written by a newer one; "
            "upgrade this pod"
        )
    return cast("dict[str, Any]", data)


def _build(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as error:
        raise UnsupportedRecord(str(error)) from error


def _text(data: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    text = _as_text(data.get(name, ""), name)
    if required and not text:
        raise ValueError(f"{name} is missing")
    return text


def _count(data: Mapping[str, Any], name: str, *, least: int = 0) -> int:
    return _as_count(data.get(name, 0), name, least=least)


def _number(data: Mapping[str, Any], name: str) -> float:
    return _as_number(data.get(name, 0.0), name)


def _flag(data: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = data.get(name, default)
    if type(value) is not bool:
        raise ValueError(f"{name} is {str(value)[:40]!r}; it must be true or false")
    return value


def _words(data: Mapping[str, Any], name: str) -> frozenset[str]:
    value = data.get(name, [])
    if not isinstance(value, list) or len(value) > WORDS_MAX:
        raise ValueError(f"{name} must be a list of at most {WORDS_MAX} texts")
    return frozenset(sys.intern(_as_text(word, name)) for word in value)


def _rows(data: Mapping[str, Any], name: str, columns: int, rows_max: int) -> list[list[Any]]:
    value = data.get(name, [])
    if not isinstance(value, list) or len(value) > rows_max:
        raise ValueError(f"{name} must be a list of at most {rows_max} entries")
    for row in value:
        if not isinstance(row, list) or len(row) != columns:
            raise ValueError(f"an entry of {name} is {str(row)[:40]!r}; it must have {columns} fields")
    return value


def _as_text(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) > TEXT_LENGTH_MAX:
        raise ValueError(f"{name} is {str(value)[:40]!r}; it must be text of at most {TEXT_LENGTH_MAX} characters")
    if not value.isascii() and _SURROGATE.search(value):
        raise ValueError(f"{name} is {value[:40]!a}, which holds no character")
    return value


def _as_count(value: object, name: str, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value < NUMBER_MAX:
        raise ValueError(f"{name} is {str(value)[:40]!r}; it must be a whole number from {least}")
    return value


def _as_number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < NUMBER_MAX:
        raise ValueError(f"{name} is {str(value)[:40]!r}; it must be a number from 0")
    return float(value)
