"""Clients of object stores: one for what has a server and a set of credentials in common, so that it keeps connections.

Making a client takes 5 ms, and a new connection two round trips or more, so neither is done for each artifact.

**What a request may use.** Never the process's AWS_*, GOOGLE_* and AZURE_* variables: obstore reads them for every
option that is not given, a session token even beside explicit keys. So credentials go through a provider, or requests
are unsigned, and endpoint, region, type of credential and addressing style are always given. A few it reads whatever is
given; those are taken out of the environment (`forget_ambient_credentials`). Proxy variables are honoured: they are the
operator's network.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from runtime_adapters.artifacts.storage_keys import AzureKey, GcsKey, S3Key

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    ObjectClient = S3Store | GCSStore | AzureStore

_CLIENTS_MAX = 64
"""Kept, of each kind: buckets and servers that a pod reads from. One beyond that is made anew, no more."""
_AMBIENT = (
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BEARER_TOKEN",
    "AZURE_ENCRYPTION_KEY",
)
"""What obstore 0.12 reads beside explicit credentials, and fails on or sends."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one request may take. Sums of tries are bounded by the fetch's deadline."""

    whole_s: float
    stall_s: float
    connect_s: float


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


@lru_cache(maxsize=_CLIENTS_MAX)
def gcs_client(bucket: str, key: GcsKey, timeouts: Timeouts) -> GCSStore:
    """Of one bucket. A service account signs its own tokens; no server is asked for them."""
    from obstore.store import GCSStore

    common: dict[str, Any] = {
        "base_url": key.endpoint,
        "client_options": _client_options(timeouts, key.endpoint.startswith("http://"), key.certificate),
        "retry_config": _retries(timeouts),
    }
    if not key.service_account:
        return GCSStore(bucket, skip_signature=True, **common)
    return GCSStore(bucket, skip_signature=False, service_account_key=key.service_account, **common)


@lru_cache(maxsize=_CLIENTS_MAX)
def azure_client(account: str, container: str, key: AzureKey, timeouts: Timeouts) -> AzureStore:
    """Of one container."""
    from obstore.store import AzureStore

    endpoint = key.endpoint_of(account)
    plain_http = endpoint.startswith("http://") or (bool(key.client_id) and key.authority_host.startswith("http://"))
    common: dict[str, Any] = {
        "account_name": account,
        "endpoint": endpoint,
        "use_emulator": False,
        "use_fabric_endpoint": False,
        "client_options": _client_options(timeouts, plain_http, key.certificate),
        "retry_config": _retries(timeouts),
    }
    given: dict[str, Any]
    if key.access_key:
        given = {"credential_type": "access_key", "account_key": key.access_key}
    elif key.sas_token:
        given = {"credential_type": "sas_token", "sas_key": key.sas_token}
    elif key.client_id:
        given = {
            "credential_type": "client_secret",
            "client_id": key.client_id,
            "client_secret": key.client_secret,
            "tenant_id": key.tenant_id,
            "authority_host": key.authority_host,
        }
    else:
        return AzureStore(container, skip_signature=True, **common)
    return AzureStore(container, skip_signature=False, **given, **common)


def forget_ambient_credentials() -> None:
    """Take out of this process's environment what no request may use, and obstore would. At the pod's start."""
    for name in _AMBIENT:
        os.environ.pop(name, None)


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
