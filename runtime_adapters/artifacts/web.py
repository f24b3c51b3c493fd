"""GETs from servers that somebody else named, every hop of them judged; for objects and for what is said about them.

A URI may name a stranger's server, and a stranger may redirect into the pod's own network. So redirects are followed
here, by no library: each is judged like the first URL before anything is asked, ten of them at most, from TLS to TLS
only, and what the first request carries for its own server (a key's headers, a token) goes to no other. The address
that a name resolves to is judged, too, when the connection is made: no link-local address, no cloud's metadata service,
whatever name leads there. A proxy of the operator's (`HTTPS_PROXY` and its like) resolves names itself, and judges.

The standard library's client, no word of the environment but the proxies (no netrc). Connections are kept for the next
request of the same server, some seconds: a hub answers every part of a file with a redirect.

A request has one deadline, and ends soon after nobody wants its answer any more: each wait for bytes, of headers too,
is bounded by the server's longest silence, and looks up before and after. So a server that answers by the byte holds a
thread no longer than one that says nothing.
"""

from __future__ import annotations

import base64
import io
import select
import socket
import ssl
import string
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, cast
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.errors import ArtifactTooLarge, BadLocation, FetchFailed, FetchTimedOut
from runtime_adapters.artifacts.source_policy import is_forbidden_address
from runtime_adapters.artifacts.storage_keys import origin_of
from runtime_adapters.errors import BadArtifact

REDIRECTS_MAX = 10
"""As browsers' and libraries' limits are: more are a circle."""
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 256 * 1024
"""Read at a time, at most."""
_LEFT_BYTES_MAX = 64 * 1024
"""A redirect's body is read to its end if it is no longer, so that its connection can be kept."""
_KEPT_MAX = 32
"""Connections that wait for a next request, of all servers together: parts of some files at a time."""
_KEPT_S = 10.0
"""Servers close what is idle after 5 s and more; one that did is found out, and the request made anew."""


class Patience:
    """What one request may still take: time, bytes, and somebody's interest."""

    def __init__(
        self,
        timeouts: Timeouts,
        where: str,
        check: Callable[[], None],
        *,
        whole_s: float,
        bytes_max: int | None = None,
    ) -> None:
        """`check` raises when nobody waits any more. `bytes_max`: of all that comes, headers included."""
        self.where = where
        self._stall_s = timeouts.stall_s
        self._connect_s = timeouts.connect_s
        self._check = check
        self._bytes_max = bytes_max
        self._taken_bytes = 0
        self._deadline_s = time.monotonic() + whole_s

    def wait_s(self) -> float:
        """How long to wait for the next bytes. Raises FetchTimedOut, and what `check` raises."""
        self._check()
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise FetchTimedOut(f"{self.where}: the server does not come to an end of its answer; it is asked again")
        return min(left_s, self._stall_s)

    def wait_connected_s(self) -> float:
        """As `wait_s`, for a connection."""
        return min(self.wait_s(), self._connect_s)

    def take(self, count: int) -> None:
        """Raises ArtifactTooLarge."""
        self._taken_bytes += count
        if self._bytes_max is not None and self._taken_bytes > self._bytes_max:
            raise ArtifactTooLarge(f"{self.where}: the server's answer about it is larger than {self._bytes_max} bytes")


class Reply:
    """What a server said, whatever its status, but for redirects. `url`: where it said so. To be read or closed."""

    def __init__(self, line: _Line, response: _Response, url: str) -> None:
        self.status = response.status
        self.headers: Message = response.headers
        self.url = url
        self._line = line
        self._response = response

    @property
    def length_bytes(self) -> int | None:
        """Of the body, where the server says it."""
        return None if self._response.chunked else self._response.length

    def whole(self) -> bytes:
        """The body."""
        body = self._response.read()
        self._end()
        return body

    def chunks(self) -> Iterator[bytes]:
        """The body of a reply with a length, as it comes. One that is left in the middle closes its connection."""
        try:
            left = self.length_bytes or 0
            while left:
                piece = self._response.some(min(left, _CHUNK_BYTES))
                if not piece:
                    raise IncompleteRead(b"", left)
                left -= len(piece)
                yield piece
            self._end()
        finally:
            self.close()

    def skip(self) -> None:
        """Be done with it, and keep the connection if that is cheap."""
        length = self.length_bytes
        if length is not None and length <= _LEFT_BYTES_MAX:
            self.whole()
        self.close()

    def close(self) -> None:
        """Be done with it; harmless after its end."""
        if not self._response.isclosed():
            self._response.close()
            self._line.http.close()

    def __del__(self) -> None:
        self.close()

    def _end(self) -> None:
        keeps = not self._response.will_close
        self._response.close()
        if keeps:
            _kept.give(self._line)
        else:
            self._line.http.close()


def get(
    url: str,
    patience: Patience,
    *,
    own: Mapping[str, str],
    headers: Mapping[str, str],
    certificate: str,
    check_server: Callable[[str], None],
) -> Reply:
    """Ask for `url`, and wherever it redirects. `own` headers are for its own server, `headers` for every one.
    `check_server` raises for the URL of a server that a redirect must not lead to. Blocking.

    Raises what it and `patience` raise, BadArtifact (a redirect out of TLS), BadLocation (a forbidden address),
    FetchFailed (no answer).
    """
    for _ in range(REDIRECTS_MAX + 1):
        reply = _ask_once(url, patience, {**headers, **own}, certificate)
        if reply.status not in _REDIRECTS:
            return reply
        led_to = reply.headers.get("Location", "")
        reply.skip()
        to = urldefrag(urljoin(url, quote(led_to, safe=string.punctuation))).url if led_to else url
        before, after = urlsplit(url).scheme, urlsplit(to).scheme
        if after != "https" and (before == "https" or after != "http"):
            raise BadArtifact(f"{patience.where}: the server redirects to {after[:10]!r}, where TLS is asked for")
        check_server(to)
        if origin_of(to) is None or origin_of(to) != origin_of(url):
            own = {}
        url = to
    raise FetchFailed(f"{patience.where}: the server redirects in circles, or to nowhere; it is tried again later")


def no_answer(error: Exception, where: str) -> FetchFailed:
    """Ours for what the standard library raises; its texts hold URLs, and those may hold what is nobody's business."""
    match error:
        case TimeoutError():
            return FetchTimedOut(f"{where}: the server stopped answering; it is tried again later")
        case socket.gaierror():
            reason = "the host name cannot be resolved"
        case ConnectionRefusedError():
            reason = "the connection was refused"
        case ssl.SSLCertVerificationError():
            reason = "the server's TLS certificate was not accepted"
        case IncompleteRead() | ConnectionError():
            reason = "the connection broke"
        case _:
            reason = f"no answer from the server ({type(error).__name__})"
    return FetchFailed(f"{where}: {reason}; it is tried again later")


ANSWERS_NOT = (OSError, HTTPException, ValueError)
"""What the standard library raises where a server gives no answer, or none that can be read."""


@dataclass(frozen=True, slots=True)
class _Server:
    """What requests over one connection have in common. `proxy`: `host:port` of one, and what it wants to know."""

    scheme: str
    host: str
    port: int
    certificate: str
    proxy: tuple[str, int, str] | None


class _Line:
    """A connection, which outlives its requests: each has a patience of its own."""

    def __init__(self, server: _Server, patience: Patience) -> None:
        self.server = server
        self.patience = patience
        self.kept_s = 0.0
        host, port, login = server.proxy or (server.host, server.port, "")
        if server.scheme == "https":
            self.http: HTTPConnection = HTTPSConnection(host, port, context=_trust(server.certificate))
        else:
            self.http = HTTPConnection(host, port)
        self._login = {"Proxy-Authorization": login} if login else {}
        if server.proxy and server.scheme == "https":
            self.http.set_tunnel(server.host, server.port, self._login)
        connection = cast(Any, self.http)
        connection._create_connection = self._connect
        connection.response_class = self._response

    def ask(self, url: str, headers: Mapping[str, str]) -> _Response:
        """One GET, up to the end of the answer's headers."""
        parts = urlsplit(url)
        through = self.server.proxy is not None and self.server.scheme == "http"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = f"http://{parts.netloc}{path}" if through else path
        self.http.timeout = self.patience.wait_s()
        self.http.putrequest("GET", target, skip_accept_encoding=True)
        sent = {"User-Agent": "hexcomb", "Accept-Encoding": "identity", **headers, **(self._login if through else {})}
        for name, value in sent.items():
            self.http.putheader(name, value)
        self.http.endheaders()
        return cast(_Response, self.http.getresponse())

    def is_good(self, now_s: float) -> bool:
        """Whether it may carry another request. What can be read from it before that is its end."""
        connected = self.http.sock
        if connected is None or now_s - self.kept_s > _KEPT_S:
            return False
        waiting = select.poll()
        waiting.register(connected, select.POLLIN)
        return not waiting.poll(0)

    def _response(self, connected: socket.socket, *others: Any, **named: Any) -> _Response:
        return _Response(connected, self, *others, **named)

    def _connect(self, address: tuple[str, int], *others: Any) -> socket.socket:
        """To the first of the name's addresses that answers: a stranger may have named a hundred that do not."""
        failed: Exception = OSError("the name has no address")
        for _, _, _, _, found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            host = str(found[0])
            if self.server.proxy is None and is_forbidden_address(host):
                failed = BadLocation(
                    f"{self.patience.where}: {address[0]} leads to {host}, a link-local address or a cloud's for its "
                    "machines, which no model is served from"
                )
                continue
            wait_s = self.patience.wait_connected_s()
            try:
                connected = socket.create_connection((host, int(found[1])), wait_s)
            except OSError as error:
                failed = error
            else:
                connected.settimeout(self.patience.wait_s())
                return connected
        raise failed


class _Response(HTTPResponse):
    def __init__(self, connected: socket.socket, line: _Line, *others: Any, **named: Any) -> None:
        super().__init__(connected, *others, **named)
        self.fp.close()
        self.fp = io.BufferedReader(_Patiently(connected, line))

    def some(self, count: int) -> bytes:
        """What comes next of the body, without waiting for more; empty at its end."""
        found: bytes = self.fp.read1(count)
        return found


class _Patiently(io.RawIOBase):
    """The bytes of a connection, each read of which may be the last."""

    def __init__(self, connected: socket.socket, line: _Line) -> None:
        self._connected = connected
        self._bytes = connected.makefile("rb", buffering=0)
        self._patience = line.patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connected.settimeout(self._patience.wait_s())
        try:
            count = self._bytes.readinto(buffer)
        except TimeoutError:
            self._patience.wait_s()
            raise
        self._patience.take(count or 0)
        return count

    def close(self) -> None:
        self._bytes.close()
        super().close()


class _Kept:
    """Connections between two requests. For all threads that fetch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[_Line] = []

    def take(self, server: _Server) -> _Line | None:
        """The latest one to this server that is still good."""
        now_s = time.monotonic()
        with self._lock:
            found = next((line for line in reversed(self._lines) if line.server == server), None)
            if found is not None:
                self._lines.remove(found)
        if found is None or found.is_good(now_s):
            return found
        found.http.close()
        return self.take(server)

    def give(self, line: _Line) -> None:
        """It has no request any more. The oldest leave."""
        line.kept_s = now_s = time.monotonic()
        with self._lock:
            self._lines.append(line)
            fresh = [each for each in self._lines[-_KEPT_MAX:] if now_s - each.kept_s <= _KEPT_S]
            old = [each for each in self._lines if each not in fresh]
            self._lines = fresh
        for each in old:
            each.http.close()


_kept = _Kept()


def _ask_once(url: str, patience: Patience, headers: Mapping[str, str], certificate: str) -> Reply:
    try:
        server = _server_of(url, certificate)
        kept = _kept.take(server)
        # A kept connection may have ended meanwhile, and a new one that breaks at once is worth one more.
        for line in (kept, _Line(server, patience)):
            if line is None:
                continue
            line.patience = patience
            with suppress(ConnectionResetError, BrokenPipeError, BadStatusLine):
                return _reply(line, url, headers)
        return _reply(_Line(server, patience), url, headers)
    except ANSWERS_NOT as error:
        raise no_answer(error, patience.where) from None


def _reply(line: _Line, url: str, headers: Mapping[str, str]) -> Reply:
    try:
        return Reply(line, line.ask(url, headers), url)
    except BaseException:
        line.http.close()
        raise


def _server_of(url: str, certificate: str) -> _Server:
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", parts.scheme
    port = parts.port or (443 if scheme == "https" else 80)
    return _Server(scheme, host, port, certificate if scheme == "https" else "", _proxy_of(scheme, host, port))


def _proxy_of(scheme: str, host: str, port: int) -> tuple[str, int, str] | None:
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("the proxy of the environment is no http:// one")
    login = ""
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        login = "Basic " + base64.b64encode(secret.encode()).decode()
    return parts.hostname, parts.port or 80, login


@lru_cache(maxsize=16)
def _trust(certificate: str) -> ssl.SSLContext:
    """What this machine trusts, and a key's certificate beside that: a redirect leads to others."""
    context = ssl.create_default_context()
    if certificate:
        context.load_verify_locations(cadata=certificate)
    return context
