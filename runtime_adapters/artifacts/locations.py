"""What a storage URI means: which scheme, whose server, which object, and whether the operator trusts it.

Trust is decided on names, so a name must have one spelling. A URI is therefore parsed strictly and once: everything
that a server or an HTTP library might read as another path (`..`, `%2e`, `%2f`, backslashes, control characters,
credentials before the host) is refused rather than repaired. Then "lies under this prefix" is a comparison of path
segments: `s3://b/tr` covers `s3://b/tr/x`, never `s3://b/trusted-not`.

* `s3://bucket/key` - the rest after the bucket is the key, literally: nothing in it is decoded.
* `http(s)://host[:port]/path[?query]` - the query is kept for the request (signed URLs) and shown to nobody.
* `file:///path` (percent-decoded) and bare absolute paths (literal).

What an http URI may reach: a registrar can make the pod send GET requests, so link-local addresses (cloud metadata
services) are refused always, and `http_hosts` limits the rest. Two things it does not cover, for the network policy
to cover: a name that resolves to an inner address, and a redirect, which the HTTP library follows by itself.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from runtime_adapters.artifacts.errors import BadLocation

_URI_LENGTH_MAX = 4096
_SHOWN_LENGTH_MAX = 200
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_NUMERIC_HOST = re.compile(r"[0-9a-fx.]+")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ARCHIVES = ((".zip", "zip"), (".tar", "tar"), (".tar.gz", "tar.gz"), (".tgz", "tar.gz"))
_SUFFIX = re.compile(r"\.[a-z0-9_]{1,16}")


@dataclass(frozen=True, slots=True)
class Location:
    """A URI, understood. `authority` is the bucket or `host[:port]`; `path` has no leading slash.

    `uri` is the normal form, query included: never show it, show `shown`.
    """

    scheme: str
    authority: str
    path: str
    uri: str = field(repr=False)
    query: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """The URI for logs and errors: without its query, and not longer than a line."""
        text = f"{self.scheme}://{self.authority}/{self.path}" + ("?..." if self.query else "")
        return text if len(text) <= _SHOWN_LENGTH_MAX else text[:_SHOWN_LENGTH_MAX] + "..."

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's segments, empty ones left out."""
        return tuple(segment for segment in self.path.split("/") if segment)

    @property
    def file_path(self) -> Path:
        """Where a `file` location lies on this machine."""
        return Path("/" + self.path)

    @property
    def archive_kind(self) -> str | None:
        """`zip`, `tar` or `tar.gz` if the name says so. Formats that are zip files inside keep their own names."""
        lowered = self.path.lower()
        return next((kind for suffix, kind in _ARCHIVES if lowered.endswith(suffix)), None)

    @property
    def suffix(self) -> str:
        """The name's last suffix if it is a plain one (`.onnx`), else nothing."""
        suffix = Path(self.path).suffix.lower()
        return suffix if _SUFFIX.fullmatch(suffix) else ""


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What the operator allows and trusts.

    `file_prefixes`: directories that file:// may read; None allows every file (a pod on loopback only).
    `http_hosts`: hosts that http(s):// may reach; None allows all but link-local ones.
    `trusted_prefixes`: URIs below which artifacts may run code when they load.
    """

    file_prefixes: tuple[Path, ...] | None = None
    trusted_prefixes: tuple[str, ...] = ()
    http_hosts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for prefix in self.trusted_prefixes:
            _parse_prefix(prefix)

    def check(self, location: Location) -> None:
        """Raise BadLocation where the operator's rules forbid this location."""
        if location.scheme in _DEFAULT_PORTS:
            host = _host_of(location.authority)
            if _is_link_local(host):
                raise BadLocation(
                    f"uri {location.shown!r}: {host} is a link-local address, which no model is served from"
                )
            if self.http_hosts is not None and host not in {allowed.lower() for allowed in self.http_hosts}:
                raise BadLocation(
                    f"uri {location.shown!r}: host {host} is not among the hosts that the operator allows "
                    f"({', '.join(self.http_hosts) or 'none'})"
                )
        elif location.scheme == "file":
            self.check_file(location.file_path, location.shown)

    def check_file(self, path: Path, shown: str) -> None:
        """Raise BadLocation unless the file that `path` really is (links followed) may be read."""
        if self.file_prefixes is None:
            return
        real = path.resolve()
        if any(real.is_relative_to(prefix.resolve()) for prefix in self.file_prefixes):
            return
        allowed = ", ".join(str(prefix) for prefix in self.file_prefixes)
        raise BadLocation(
            f"uri {shown!r}: file:// is limited to {allowed or 'no directory at all'} on this pod; "
            "put the artifact there, on an http(s) server or in a bucket"
        )

    def trusts(self, location: Location) -> bool:
        """Whether the location lies under a trusted prefix, as its name says."""
        return any(_covers(_parse_prefix(prefix), location) for prefix in self.trusted_prefixes)

    def trusts_file(self, real: Path) -> bool:
        """Whether a file, links followed, lies under a trusted file prefix, links followed."""
        prefixes = (_parse_prefix(prefix) for prefix in self.trusted_prefixes)
        return any(real.is_relative_to(prefix.file_path.resolve()) for prefix in prefixes if prefix.scheme == "file")


def parse_location(uri: str) -> Location:
    """Understand a URI, or raise BadLocation saying what is wrong with it."""
    if not uri:
        raise BadLocation("uri is empty; give file:///path, https://host/path or s3://bucket/key")
    if len(uri) > _URI_LENGTH_MAX:
        raise BadLocation(f"uri has {len(uri)} characters; {_URI_LENGTH_MAX} are allowed")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if uri.startswith("/"):
            return _file_location(uri, uri)
        raise BadLocation(
            f"uri {_shown(uri)}: neither a URI nor an absolute path; give file:///path, https://host/path or s3://bucket/key"
        )
    match scheme.lower():
        case "file":
            return _parse_file(uri, rest)
        case "http" | "https":
            return _parse_http(uri)
        case "s3":
            return _parse_s3(uri, rest)
        case _:
            raise BadLocation(f"uri {_shown(uri)}: scheme {scheme[:20]!r} is not served; use file, http, https or s3")


def _parse_file(uri: str, rest: str) -> Location:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise BadLocation(f"uri {_shown(uri)}: a file URI has three slashes, file:///path, and names no host")
    return _file_location(uri, "/" + unquote(path))


def _file_location(uri: str, path: str) -> Location:
    if re.search(r"[\x00-\x1f\x7f]", path):
        raise BadLocation(f"uri {_shown(uri)}: the path holds a control character")
    segments = [segment for segment in path.split("/") if segment]
    _refuse_dots(uri, segments)
    plain = "/".join(segments)
    return Location("file", "", plain, uri=f"file:///{plain}")


def _parse_http(uri: str) -> Location:
    if _FORBIDDEN.search(uri):
        raise BadLocation(f"uri {_shown(uri)}: spaces, control characters and backslashes must be percent-encoded")
    try:
        parts = urlsplit(uri)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise BadLocation(f"uri {_shown(uri)}: {error}") from None
    if "@" in parts.netloc:
        raise BadLocation("uri holds a user name or password before its host; put credentials in a storage key instead")
    bracketed = parts.netloc.startswith("[")
    if bracketed:
        try:
            host = f"[{ipaddress.IPv6Address(host)}]"
        except ValueError:
            raise BadLocation(f"uri {_shown(uri)}: {host!r} is not an IPv6 address") from None
    elif not _HOST.fullmatch(host):
        raise BadLocation(f"uri {_shown(uri)}: {host!r} is not a host name; write other scripts in their xn-- form")
    if parts.fragment or uri.endswith("#"):
        raise BadLocation(f"uri {_shown(uri)}: a fragment (#...) names no file; leave it out")
    segments = parts.path.split("/")[1:]
    if _PERCENT.search(parts.path):
        raise BadLocation(f"uri {_shown(uri)}: a % must be followed by two hex digits")
    for segment in segments:
        decoded = unquote(segment)
        if "/" in decoded or "\\" in decoded or _FORBIDDEN.search(decoded.replace(" ", "")):
            raise BadLocation(f"uri {_shown(uri)}: the path hides a slash, backslash or control character")
    _refuse_dots(uri, [unquote(segment) for segment in segments])
    authority = host if port is None or port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}"
    path = "/".join(segments)
    normal = f"{parts.scheme}://{authority}/{path}" + (f"?{parts.query}" if parts.query else "")
    return Location(parts.scheme, authority, path, uri=normal, query=parts.query)


def _parse_s3(uri: str, rest: str) -> Location:
    bucket, _, key = rest.partition("/")
    if bucket and not _BUCKET.fullmatch(bucket):
        raise BadLocation(f"uri {_shown(uri)}: {bucket[:80]!r} is not a bucket name")
    if re.search(r"[\x00-\x1f\x7f]", key):
        raise BadLocation(f"uri {_shown(uri)}: the key holds a control character")
    segments = key.removesuffix("/").split("/") if key else []
    if "" in segments:
        raise BadLocation(f"uri {_shown(uri)}: the key has two slashes in a row, which is not supported")
    _refuse_dots(uri, segments)
    return Location("s3", bucket, key, uri=f"s3://{bucket}/{key}")


def _refuse_dots(uri: str, segments: list[str]) -> None:
    if any(segment in (".", "..") for segment in segments):
        raise BadLocation(f"uri {_shown(uri)}: the path holds `.` or `..`; write the path that is meant")


def _parse_prefix(prefix: str) -> Location:
    parsed = parse_location(prefix)
    if parsed.query:
        raise BadLocation(f"trusted prefix {parsed.shown!r} has a query; a prefix ends with a path")
    return parsed


def _covers(prefix: Location, location: Location) -> bool:
    if (prefix.scheme, prefix.authority) != (location.scheme, location.authority):
        return False
    return location.segments[: len(prefix.segments)] == prefix.segments


def _host_of(authority: str) -> str:
    if authority.startswith("["):
        return authority[1 : authority.index("]")]
    return authority.partition(":")[0]


def _is_link_local(host: str) -> bool:
    # Hosts such as 2852039166 or 0xa9fea9fe are addresses to an HTTP library, so they are read as inet_aton reads them.
    try:
        if ":" in host:
            six = ipaddress.IPv6Address(host)
            return six.is_link_local or (six.ipv4_mapped is not None and six.ipv4_mapped.is_link_local)
        if _NUMERIC_HOST.fullmatch(host):
            return ipaddress.IPv4Address(socket.inet_aton(host)).is_link_local
    except (ValueError, OSError):
        return False
    return False


def _shown(uri: str) -> str:
    visible = uri.partition("?")[0]
    if "@" in visible.partition("://")[2].partition("/")[0]:
        visible = visible.partition("://")[0] + "://..."
    return ascii(visible if len(visible) <= _SHOWN_LENGTH_MAX else visible[:_SHOWN_LENGTH_MAX] + "...")
