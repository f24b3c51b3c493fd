"""Where a pool's etcd is, and how to talk to it: the one place that reads addresses.

Two spellings. A URL, `etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/PREFIX` or `etcds://` for TLS, whose files and
times stand in the query: `?ca=/tls/ca.crt&cert=/tls/tls.crt&key=/tls/tls.key`. And the JSON of ModelMesh's
`etcd_connection` secret, so that an installation can be taken over as it is.

The password is in no `repr`, no message and no log: errors repeat the address without what stands before the `@`.

Deliberately absent: reading the files (`placement.store.etcd_member` does, and again when they have been renewed), and
the environment (the mesh's settings read it).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from placement.errors import InvalidAddress

DEFAULT_PORT = 2379
FORM = "etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/PREFIX"

_SCHEMES = {"etcd": False, "etcds": True}
_PREFIX = re.compile(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*")
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{1,5}))?")
_FILES_OF_QUERY = {"ca": "ca", "cert": "certificate", "key": "key"}


@dataclass(frozen=True, slots=True)
class Pem:
    """A certificate or a key: a file that is read at each connection, or the text itself."""

    file: Path | None = None
    text: str = field(default="", repr=False)

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.file) if self.file is not None else "the inline PEM text"


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """An etcd and a pool in it. Make one with `from_url` or `from_connection_json`."""

    endpoints: tuple[str, ...]
    """HOST:PORT of each member (or of a service before them); tried in this order."""
    prefix: str
    """Keys of the pool begin with this and `/`. Two pools never share one."""
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    ca: Pem | None = None
    """Who signs the server's certificate; None: the certificate authorities that gRPC brings."""
    certificate: Pem | None = None
    """The pod's own certificate, where etcd asks for one; with `key`."""
    key: Pem | None = None
    server_name: str = ""
    """The name to find in the servers' certificate, when they are called by another one."""
    call_timeout_s: float = 10.0
    """One call, tries on other members included. etcd itself gives up on a request after 7 s."""
    connect_timeout_s: float = 3.0
    """One connection: name, TCP and TLS. Then another member is tried."""
    max_reconnect_backoff_ms: int = 1000
    """gRPC would wait up to 120 s between tries; a pod is back within a second of its etcd."""
    keepalive_time_s: float = 10.0
    """Silence on a connection before a ping. Not below 5 s, etcd's --grpc-keepalive-min-time: it hangs up on more."""
    keepalive_timeout_s: float = 5.0
    """Without an answer to the ping the connection is given up."""
    watch_check_s: float = 5.0
    """Silence of a watch before it is asked how far it is."""
    watch_silence_max_s: float = 5.0
    """Without an answer to that it is made anew, on another member if there is one."""

    def __post_init__(self) -> None:
        """Raise InvalidAddress for what cannot be meant."""
        if not self.endpoints:
            raise InvalidAddress(f"the etcd address names no host; give {FORM}")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        if not _PREFIX.fullmatch(self.prefix):
            raise InvalidAddress(
                f"the etcd prefix {self.prefix!r} is not allowed; give words of letters, digits and ._~- joined by / "
                f"(each pool has its own): {FORM}"
            )
        if self.password and not self.user:
            raise InvalidAddress("the etcd address has a password but no user; give USER:PASSWORD@")
        if not self.tls and (self.ca or self.certificate or self.key or self.server_name):
            raise InvalidAddress("the etcd address has certificates but no TLS; write etcds:// (or https:// endpoints)")
        if (self.certificate is None) != (self.key is None):
            raise InvalidAddress("the pod's own certificate for etcd needs both cert and key; one of them is missing")
        for name, floor in (("call_timeout_s", 0.0), ("connect_timeout_s", 0.0), ("watch_check_s", 0.0)):
            if not getattr(self, name) > floor:
                raise InvalidAddress(f"{name} is {getattr(self, name)}; give seconds above {floor:g}")

    @property
    def shown(self) -> str:
        """The address for people and logs: without the password."""
        user = f"{self.user}@" if self.user else ""
        return f"etcd{'s' if self.tls else ''}://{user}{','.join(self.endpoints)}/{self.prefix}"

    @property
    def pems(self) -> tuple[tuple[str, Pem | None], ...]:
        """The files by the names that an address gives them."""
        return ("ca", self.ca), ("cert", self.certificate), ("key", self.key)

    @classmethod
    def from_url(cls, url: str) -> EtcdOptions:
        """Read a URL. Raises InvalidAddress."""
        shown = re.sub(r"//.*@", "//...@", url)
        try:
            parts = urlsplit(url)
        except ValueError:  # its text may repeat the password
            raise InvalidAddress(f"{shown!r} is not an etcd address: its host cannot be read; give {FORM}") from None
        if parts.scheme not in _SCHEMES:
            raise InvalidAddress(f"{shown!r} is not an etcd address; give {FORM}, or etcds:// for TLS")
        if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
            raise InvalidAddress(
                f"{shown!r} is not an etcd address: in USER and PASSWORD write %2F, %3F, %23 for /, ?, #"
            )
        user, password, hosts = _split_authority(parts)
        prefix = parts.path.strip("/")
        if not prefix:
            raise InvalidAddress(f"{shown!r} has no prefix: pools that share an etcd need one each; give {FORM}")
        return cls(
            endpoints=tuple(_with_port(host.strip()) for host in hosts.split(",") if host.strip()),
            prefix=prefix,
            user=user,
            password=password,
            tls=_SCHEMES[parts.scheme],
            **_options_of_query(parts.query, shown),
        )

    @classmethod
    def from_connection_json(cls, text: str, directory: Path, *, default_prefix: str = "") -> EtcdOptions:
        """Read ModelMesh's `etcd_connection`; `directory` is where it lies, and file names in it are relative to that.

        `default_prefix` is for one without `root_prefix`. Raises InvalidAddress.
        """
        fields = _json_fields(text)
        endpoints: list[str] = []
        schemes: set[str] = set()
        for endpoint in fields.get("endpoints", "").split(","):
            scheme, separator, host = endpoint.strip().rpartition("://")
            if separator:
                schemes.add(scheme)
            if host:
                endpoints.append(_with_port(host.rstrip("/")))
        if not schemes <= {"http", "https"} or len(schemes) > 1:
            raise InvalidAddress(
                f"etcd_connection: endpoints have the schemes {', '.join(sorted(schemes))}; write http:// for all, or "
                "https:// for all"
            )

        def pem(name: str) -> Pem | None:
            if fields.get(name):
                return Pem(text=fields[name])
            return Pem(directory / fields[f"{name}_file"]) if fields.get(f"{name}_file") else None

        ca = pem("certificate")
        return cls(
            endpoints=tuple(endpoints),
            prefix=fields.get("root_prefix", "").strip("/") or default_prefix,
            user=fields.get("userid", ""),
            password=fields.get("password", ""),
            tls=schemes == {"https"} or (not schemes and ca is not None),
            ca=ca,
            certificate=pem("client_certificate"),
            key=pem("client_key"),
            server_name=fields.get("override_authority", ""),
        )


def _split_authority(parts: SplitResult) -> tuple[str, str, str]:
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    return unquote(user), unquote(password), hosts


def _options_of_query(query: str, shown: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _FILES_OF_QUERY:
            options[_FILES_OF_QUERY[name]] = Pem(Path(value))
        elif name == "server_name":
            options[name] = value
        elif name in ("call_timeout_s", "connect_timeout_s"):
            try:
                options[name] = float(value)
            except ValueError:
                raise InvalidAddress(f"{shown!r}: {name} is {value!r}; give seconds") from None
        else:
            raise InvalidAddress(
                f"{shown!r}: {name!r} is not an option; there are ca, cert, key, server_name, call_timeout_s and "
                "connect_timeout_s"
            )
    return options


def _json_fields(text: str) -> dict[str, str]:
    # What is wrong is named, never shown: the text holds the password.
    try:
        fields = json.loads(text)
    except ValueError as error:
        where = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "its text"
        raise InvalidAddress(f"etcd_connection is not JSON: see {where}") from None
    if not isinstance(fields, dict):
        raise InvalidAddress("etcd_connection is not a JSON object")
    wrong = [name for name, value in fields.items() if not isinstance(value, str) and value is not None]
    if wrong:
        raise InvalidAddress(f"etcd_connection: {', '.join(sorted(wrong))} must be text")
    return {name: value for name, value in fields.items() if value}


def _with_port(endpoint: str) -> str:
    match = _HOST_PORT.fullmatch(endpoint)
    return f"{endpoint}:{DEFAULT_PORT}" if match is not None and match["port"] is None else endpoint


def _check_endpoint(endpoint: str) -> None:
    match = _HOST_PORT.fullmatch(endpoint)
    if match is None or match["port"] is None or not 0 < int(match["port"]) <= 65535:
        raise InvalidAddress(f"{endpoint!r} is not HOST:PORT (an IPv6 address goes in brackets); give {FORM}")
