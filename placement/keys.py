"""Where each record lies: the names of keys, and which tenants and ids may be part of one.

An id is whatever a client calls its model: it may hold `/`, `%`, spaces inside and any script. In a key it is
percent-encoded, so a key splits at `/` without doubt, and `copies/<tenant>/<id>/` is a prefix of exactly the copies of
one model. Encoded keys are ASCII; their order is that of the encoded form, which is all that paging needs.

Refused in a name is what cannot be shown or typed safely: control characters, lone surrogates, line separators and
the marks that turn text around (they make one name look like another), and spaces at either end.

What pods say of a model lies under `<kind>/<tenant>/<id>/<pod>`. Intents have one part more, the incarnation, so that
a pod that came back does not write over what its predecessor was doing when it died.

`references/<tenant>/<model>/<alias>` says that the alias points at the model. Unregistering compares that prefix with
"empty" in the same transaction as the delete, so no alias can slip in between.

Deliberately absent: the pool's prefix. The store puts it in front of every key.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from placement.errors import InvalidName

TENANT_LENGTH_MAX = 128
"""Characters. Kubernetes namespaces have 63; other platforms' project names are longer."""
ID_LENGTH_MAX = 512
"""Characters. Each may take 12 in a key; with tenant and pod a key stays below 10,000."""
POD_LENGTH_MAX = 253
"""Characters: what DNS allows a host name."""

MODELS = "models/"
ALIASES = "aliases/"
REFERENCES = "references/"
TOMBSTONES = "tombstones/"
COPIES = "copies/"
PARKED = "parked/"
PODS = "pods/"
FAILURES = "failures/"
INTENTS = "intents/"
SUSPICIONS = "suspicions/"
PROFILES = "profiles/"
LEADER = "leader"
"""One key: who runs the placement service."""
HOT = "hot"
"""One key: the hottest models, so that the next leader knows them."""
DETACHED = "detached/"
"""Pods that found the store without what they knew to be registered."""

DEFAULT_TENANT = "default"

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]+")


def check_name(field: str, name: str, length_max: int) -> None:
    """Raise InvalidName unless `name` can be a tenant, an id or a pod."""
    if not isinstance(name, str):
        raise InvalidName(f"{field} must be text, but is {type(name).__name__}; give a string")
    if not name:
        raise InvalidName(f"{field} is empty; give a name of 1 to {length_max} characters")
    if len(name) > length_max:
        raise InvalidName(
            f"{field} has {len(name)} characters ({name[:40]!r}...); at most {length_max} are allowed: shorten it"
        )
    if bad := _FORBIDDEN.search(name):
        raise InvalidName(
            f"{field} {name[:40]!r} holds {bad[0]!a} at position {bad.start()}; control characters, line "
            "separators and text-direction marks are not allowed: remove them"
        )
    if name[0].isspace() or name[-1].isspace():
        raise InvalidName(f"{field} {name[:40]!r} begins or ends with a space; remove it")


def check_tenant(tenant: str) -> None:
    """Raise InvalidName unless `tenant` can be one."""
    check_name("tenant", tenant, TENANT_LENGTH_MAX)


def check_id(model_id: str) -> None:
    """Raise InvalidName unless `model_id` can be the id of a model or an alias."""
    check_name("id", model_id, ID_LENGTH_MAX)


def check_pod(pod: str) -> None:
    """Raise InvalidName unless `pod` can be the id of a pod."""
    check_name("pod id", pod, POD_LENGTH_MAX)


def encode_part(part: str) -> str:
    """One part of a key: ASCII, without `/`."""
    return part if _PLAIN.fullmatch(part) else quote(part, safe="")


def decode_part(part: str) -> str:
    """The name that `encode_part` was given."""
    return unquote(part, errors="strict") if "%" in part else part


def model_key(tenant: str, model_id: str) -> str:
    """Where a model's record lies."""
    return f"{MODELS}{encode_part(tenant)}/{encode_part(model_id)}"


def alias_key(tenant: str, alias_id: str) -> str:
    """Where an alias's record lies."""
    return f"{ALIASES}{encode_part(tenant)}/{encode_part(alias_id)}"


def tombstone_key(tenant: str, model_id: str) -> str:
    """Where it is remembered, for an hour, that a model was unregistered."""
    return f"{TOMBSTONES}{encode_part(tenant)}/{encode_part(model_id)}"


def references_prefix(tenant: str, model_id: str) -> str:
    """The prefix under which each alias that points at the model has a key."""
    return f"{REFERENCES}{encode_part(tenant)}/{encode_part(model_id)}/"


def reference_key(tenant: str, model_id: str, alias_id: str) -> str:
    """Says that the alias points at the model."""
    return references_prefix(tenant, model_id) + encode_part(alias_id)


def copies_prefix(tenant: str, model_id: str) -> str:
    """The prefix of all copies of one model; empty under it means that a first copy may be claimed."""
    return f"{COPIES}{encode_part(tenant)}/{encode_part(model_id)}/"


def copy_key(tenant: str, model_id: str, pod: str) -> str:
    """Where the pod says that it loads or serves the model."""
    return copies_prefix(tenant, model_id) + encode_part(pod)


def parked_key(tenant: str, model_id: str, pod: str) -> str:
    """Where the pod says that it has no copy of the model, but its artifact on the disk."""
    return f"{PARKED}{encode_part(tenant)}/{encode_part(model_id)}/{encode_part(pod)}"


def pod_key(pod: str) -> str:
    """Where the pod says what it is and how it does."""
    return PODS + encode_part(pod)


def failure_key(tenant: str, model_id: str, pod: str) -> str:
    """Where the pod says that it could not load the model."""
    return f"{FAILURES}{encode_part(tenant)}/{encode_part(model_id)}/{encode_part(pod)}"


def intent_key(tenant: str, model_id: str, pod: str, incarnation: str) -> str:
    """Where the pod says that it begins to load or run the model."""
    parts = (tenant, model_id, pod, incarnation)
    return INTENTS + "/".join(encode_part(part) for part in parts)


def suspicion_key(tenant: str, model_id: str) -> str:
    """Where it is kept at which pods' deaths the model was seen."""
    return f"{SUSPICIONS}{encode_part(tenant)}/{encode_part(model_id)}"


def profile_key(content_hash: str, runtime: str) -> str:
    """Where it is kept what copies of this content take, loaded by this runtime on this kind of CPU."""
    return profiles_of(content_hash) + encode_part(runtime)


def profiles_of(content_hash: str) -> str:
    """What the keys of all profiles of a content begin with."""
    return f"{PROFILES}{encode_part(content_hash)}/"


def detached_key(pod: str) -> str:
    """Where the pod says that the store has lost what is registered, and hears that it has been written back."""
    return DETACHED + encode_part(pod)


def split_key(key: str, count: int) -> list[str]:
    """The `count` names in a key after its kind. Raises InvalidName for a key of another shape."""
    parts = key.split("/")
    if len(parts) != count + 1 or "" in parts:
        raise InvalidName(f"key {key[:80]!r} is not a kind and {count} names")
    try:
        return [decode_part(part) for part in parts[1:]]
    except UnicodeDecodeError as error:
        raise InvalidName(f"key {key[:80]!r} is not percent-encoded UTF-8") from error


def split_name_key(key: str) -> tuple[str, str]:
    """(tenant, id) of a key made by `model_key`, `alias_key` or `tombstone_key`."""
    parts = key.split("/")
    if len(parts) != 3:
        raise InvalidName(f"key {key[:80]!r} is not <kind>/<tenant>/<id>")
    return decode_part(parts[1]), decode_part(parts[2])
