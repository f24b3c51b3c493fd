"""Clients of object stores: one for what has a server and a set of credentials in common, so that it keeps connections.

Making a client takes 5 ms, and a new connection two round trips or more, so neither is done for each artifact.

**What a request may use.** Never the process's AWS_* variables: obstore reads them for every option that is not given,
a session token even beside explicit keys. So credentials go through a provider, or requests are unsigned, and endpoint,
region and addressing style are always given. Proxy variables are honoured: they are the operator's network.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from runtime_adapters.artifacts.credentials import S3Key

if TYPE_CHECKING:
    from obstore.store import HTTPStore, S3Store

_CLIENTS_MAX = 64
"""Kept, of each kind: buckets and servers that a pod reads from. One beyond that is made anew, no more."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one request may take. Sums of tries are bounded by the fetch's deadline."""

    whole_s: float
    stall_s: float
    connect_s: float


def new_http_client(base: str, headers: tuple[tuple[str, str], ...], certificate: str, timeouts: Timeouts) -> HTTPStore:
    """For all that lies below `base`. `headers` go with every request."""
    from obstore.store import HTTPStore

    options = _client_options(timeouts, base.startswith("http://"), certificate)
    if headers:
        options["default_headers"] = dict(headers)
    return HTTPStore(base, client_options=options, retry_config=_retries(timeouts))


http_client = lru_cache(maxsize=_CLIENTS_MAX)(new_http_client)
"""Made once for each server and set of headers."""


@lru_cache(maxsize=_CLIENTS_MAX)
def s3_client(bucket: str, key: S3Key, timeouts: Timeouts) -> S3Store:
    """Of one bucket."""
    from obstore.store import S3Store

    common: dict[str, Any] = {
        "endpoint": key.endpoint,
        "region": key.region,
        "virtual_hosted_style_request": False,
        "request_payer": False,
        "client_options": _client_options(timeouts, key.endpoint.startswith("http://"), key.certificate),
        "retry_config": _retries(timeouts),
    }
    if not key.access_key_id:
        return S3Store(bucket, skip_signature=True, **common)
    credential = {
        "access_key_id": key.access_key_id,
        "secret_access_key": key.secret_access_key,
        "token": key.session_token or None,
        "expires_at": None,
    }
    return S3Store(bucket, skip_signature=False, credential_provider=cast(Any, lambda: credential), **common)


def _client_options(timeouts: Timeouts, plain_http: bool, certificate: str) -> Any:
    options: dict[str, Any] = {
        "allow_http": plain_http,
        "timeout": timedelta(seconds=timeouts.whole_s),
        "read_timeout": timedelta(seconds=timeouts.stall_s),
        "connect_timeout": timedelta(seconds=timeouts.connect_s),
        "user_agent": "hexcomb",
    }
    if certificate:
        options["root_certificate"] = certificate
    return options


def _retries(timeouts: Timeouts) -> Any:
    # One quick retry for a dropped connection; the tries that count are the fetch's own, which see the deadline.
    return {
        "max_retries": 1,
        "retry_timeout": timedelta(seconds=min(timeouts.whole_s, 2 * timeouts.stall_s)),
        "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(milliseconds=500), "base": 2},
    }
