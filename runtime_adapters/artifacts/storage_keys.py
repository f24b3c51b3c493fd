"""What a storage key holds, one class per kind of store.

Secrets are in fields that no repr shows, and go nowhere but into the request that they sign. A key without a secret is
anonymous on purpose: nothing is ever filled in from the process's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import urlsplit

DEFAULT_REGION = "us-east-1"
AZURE_AUTHORITY = "https://login.microsoftonline.com"
HUGGING_FACE = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class StorageKey:
    """What all kinds share. `kind` is the scheme of the URIs that a key is for."""

    kind: ClassVar[str] = ""
    trusted_prefixes_apply: bool = field(default=True, kw_only=True)

    @property
    def server(self) -> str:
        """Whose `bucket` it is: equal URIs at two servers are two artifacts. Empty where the URI says it all."""
        return ""

    @property
    def default_bucket(self) -> str:
        """Where a URI lies that names no bucket."""
        return ""


@dataclass(frozen=True, slots=True)
class S3Key(StorageKey):
    """Where and as whom to read S3 buckets. Without an access key: unsigned requests."""

    kind: ClassVar[str] = "s3"
    endpoint_url: str = ""
    region: str = DEFAULT_REGION
    bucket: str = ""
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)

    @property
    def endpoint(self) -> str:
        """The server: never left to the process's environment."""
        return self.endpoint_url.rstrip("/") or f"https://s3.{self.region}.amazonaws.com"

    @property
    def server(self) -> str:
        return self.endpoint

    @property
    def default_bucket(self) -> str:
        return self.bucket


@dataclass(frozen=True, slots=True)
class GcsKey(StorageKey):
    """As which service account to read Google's buckets. Without one: unsigned requests."""

    kind: ClassVar[str] = "gs"
    endpoint_url: str = ""
    bucket: str = ""
    service_account: str = field(default="", repr=False)
    """The JSON text of `gcloud-application-credentials.json`."""
    certificate: str = field(default="", repr=False)

    @property
    def endpoint(self) -> str:
        """The server: never left to the process's environment."""
        return self.endpoint_url.rstrip("/") or "https://storage.googleapis.com"

    @property
    def server(self) -> str:
        return self.endpoint

    @property
    def default_bucket(self) -> str:
        return self.bucket


@dataclass(frozen=True, slots=True)
class AzureKey(StorageKey):
    """As whom to read Azure containers: an account's key, a shared access signature, a service principal, or nobody."""

    kind: ClassVar[str] = "azure"
    account_name: str = ""
    container: str = ""
    endpoint_url: str = ""
    """Of the account's blobs; empty: Azure's own."""
    access_key: str = field(default="", repr=False)
    sas_token: str = field(default="", repr=False)
    client_id: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)
    tenant_id: str = field(default="", repr=False)
    authority_host: str = AZURE_AUTHORITY
    certificate: str = field(default="", repr=False)

    @property
    def server(self) -> str:
        return self.endpoint_url.rstrip("/")

    @property
    def default_bucket(self) -> str:
        return self.container

    def endpoint_of(self, account_name: str) -> str:
        """The server: never left to the process's environment."""
        return self.server or f"https://{account_name}.blob.core.windows.net"


@dataclass(frozen=True, slots=True)
class HttpKey(StorageKey):
    """Headers for one origin. `origin` is `scheme://host[:port]` with the port always written."""

    kind: ClassVar[str] = "http"
    origin: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificate: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class HfKey(StorageKey):
    """Which hub, and as whom. Without a token: public models."""

    kind: ClassVar[str] = "hf"
    endpoint_url: str = HUGGING_FACE
    token: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)

    @property
    def server(self) -> str:
        return self.endpoint_url.rstrip("/")


@dataclass(frozen=True, slots=True)
class OciKey(StorageKey):
    """Registries by `host[:port]`, with a user name and a password each. Another registry is asked anonymously."""

    kind: ClassVar[str] = "oci"
    logins: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    plain_http: tuple[str, ...] = ()
    """Registries that are spoken to without TLS."""
    certificate: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class GitKey(StorageKey):
    """Who reads repositories of one origin. `origin` as in HttpKey."""

    kind: ClassVar[str] = "git"
    origin: str
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class PvcKey(StorageKey):
    """A claim that its tenant may read: it is mounted below the operator's directory of claims."""

    kind: ClassVar[str] = "pvc"
    name: str


@dataclass(frozen=True, slots=True)
class UnsupportedKey(StorageKey):
    """An entry of a type that this pod cannot read from."""

    type: str


def kind_of(key: StorageKey) -> str:
    """For errors and for matching: the scheme that the key is for."""
    return key.type if isinstance(key, UnsupportedKey) else key.kind


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
