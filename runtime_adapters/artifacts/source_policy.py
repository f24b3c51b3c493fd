"""What the operator allows to be read, and what he trusts to run code.

What an http, oci or git URI may reach: a registrar can make the pod send GET requests, so link-local addresses (cloud
metadata services) are refused always, by name and as what a name resolves to, and `http_hosts` limits the rest. Every
redirect is judged by both (`web`), a hub's too. What they do not cover, for the network policy to cover: a name that
resolves to an inner address that is not link-local, since models are served from inner addresses, and git's names.
Buckets and hubs are reached at the endpoints that storage keys name, else at the clouds' own.

Trust is decided on names: "lies under this prefix" is a comparison of path segments (`locations`).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runtime_adapters.artifacts.errors import BadLocation
from runtime_adapters.artifacts.locations import Location, parse_location

_OF_ANY_HOST = frozenset(("http", "https", "oci", "git+http", "git+https"))
"""Schemes whose URI names the host that is asked."""
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
"""Where AWS (by IPv6), Alibaba and Azure have services that tell a machine its credentials, beside link-local ones."""
_ENDS_IN_FOUR = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96")))
"""NAT64's own prefix (RFC 6052), and IPv4-compatible addresses."""
_NUMERIC_HOST = re.compile(r"[0-9a-fx.]+")


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What the operator allows and trusts.

    `file_prefixes`: directories that file:// may read; None allows every file (a pod on loopback only).
    `http_hosts`: hosts that http(s)://, oci:// and git+https:// may reach; None allows all but link-local ones.
    `pvc_root`: the directory below which claims are mounted, each under its name; None allows no claim.
    `trusted_prefixes`: URIs below which artifacts may run code when they load.
    """

    file_prefixes: tuple[Path, ...] | None = None
    trusted_prefixes: tuple[str, ...] = ()
    http_hosts: tuple[str, ...] | None = None
    pvc_root: Path | None = None

    def __post_init__(self) -> None:
        for prefix in self.trusted_prefixes:
            _parse_prefix(prefix)

    def check(self, location: Location) -> None:
        """Raise BadLocation where the operator's rules forbid this location."""
        if location.scheme in _OF_ANY_HOST:
            host = _host_of(location.authority)
            if _is_link_local(host):
                raise BadLocation(
                    f"uri {location.shown!r}: {host} is a link-local address, or a cloud's for its machines, "
                    "which no model is served from"
                )
            if self.http_hosts is not None and host not in {allowed.lower() for allowed in self.http_hosts}:
                raise BadLocation(
                    f"uri {location.shown!r}: host {host} is not among the hosts that the operator allows "
                    f"({', '.join(self.http_hosts) or 'none'})"
                )
        elif location.scheme == "file":
            self.check_file(location.file_path, location.shown)
        elif location.scheme == "pvc" and self.pvc_root is None:
            raise BadLocation(
                f"uri {location.shown!r}: no claims are mounted on this pod; the operator mounts them below a "
                "directory and names it with --pvc-root"
            )

    def check_server(self, url: str) -> None:
        """Raise BadLocation where the operator's rules forbid the server that an answer points to."""
        try:
            parts = urlsplit(url)
        except ValueError:
            raise BadLocation("the server leads to a URL that is none; check the uri") from None
        # With a query it is an http location whatever its host: Azure's would else be judged as a bucket.
        self.check(parse_location(f"{parts.scheme}://{parts.netloc}/?led-to"))

    def of_claim(self, claim: str) -> tuple[Path, SourcePolicy]:
        """Where a claim is mounted, and the rules for its files: nothing outside it, and of it what `pvc://` prefixes
        trust."""
        assert self.pvc_root is not None
        root = self.pvc_root / claim
        prefixes = (_parse_prefix(prefix) for prefix in self.trusted_prefixes)
        trusted = (root / prefix.path for prefix in prefixes if (prefix.scheme, prefix.authority) == ("pvc", claim))
        return root, SourcePolicy(file_prefixes=(root,), trusted_prefixes=tuple(str(path) for path in trusted))

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


def is_forbidden_address(address: str) -> bool:
    """Whether no request may go to this address, as a resolver writes it."""
    try:
        return _is_forbidden(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False


def _is_link_local(host: str) -> bool:
    # Hosts such as 2852039166 or 0xa9fea9fe are addresses to an HTTP library, so they are read as inet_aton reads them.
    try:
        if ":" in host:
            return _is_forbidden(ipaddress.IPv6Address(host))
        if _NUMERIC_HOST.fullmatch(host):
            return _is_forbidden(ipaddress.IPv4Address(socket.inet_aton(host)))
    except (ValueError, OSError):
        return False
    return False


def _is_forbidden(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if address.is_link_local or address in _METADATA:
        return True
    return isinstance(address, ipaddress.IPv6Address) and any(map(_is_forbidden, _four_within(address)))


def _four_within(six: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 one may be led to: by the machine itself, or by a translator on the way."""
    if six.ipv4_mapped is not None:
        yield six.ipv4_mapped
    if six.sixtofour is not None:
        yield six.sixtofour
    if six.teredo is not None:
        yield from six.teredo
    if any(six in network for network in _ENDS_IN_FOUR):
        yield ipaddress.IPv4Address(int(six) & 0xFFFF_FFFF)
