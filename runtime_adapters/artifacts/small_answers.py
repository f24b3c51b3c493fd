"""Small answers over HTTP: what a registry or a hub says about its objects, with the headers that obstore keeps back.

The standard library's client: one connection a question, no more than `BYTES_MAX` of an answer, the operator's proxies
and no other word of the environment (no netrc). A redirect is followed from TLS to TLS only, and the credentials of the
first request go with it only to the very server that they were for. Where it leads to is judged like the first URL:
a registry is a stranger, whose answer may point into the pod's own network.

A question has one deadline, whatever comes of it on the way, and ends soon after nobody wants its answer any more: each
wait for bytes, of headers too, is bounded by the server's longest silence, and looks up before and after. So a server
that answers by the byte holds a thread no longer than one that says nothing.
"""

from __future__ import annotations

import io
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urldefrag, urlsplit

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.errors import ArtifactTooLarge, FetchFailed, FetchTimedOut
from runtime_adapters.artifacts.storage_keys import origin_of
from runtime_adapters.errors import BadArtifact

BYTES_MAX = 32 * 1024 * 1024
"""A manifest has kilobytes; the list of a repository of 10,000 files, some megabytes."""
WHOLE_S_MAX = 30.0
"""Of one question with its redirects: a server that takes this long for a small answer gives none."""
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said, whatever its status. `url`: where it said so, redirects followed."""

    status: int
    headers: Message
    body: bytes
    url: str

    def json(self, where: str) -> dict[str, Any]:
        """The object in the body. Raises BadArtifact."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise BadArtifact(f"{where}: the server's answer is no JSON object; check the uri")
        return found


def fields_of(value: object) -> dict[str, Any]:
    """Of a JSON object; none of what is no object, whatever a stranger put in its place."""
    return value if isinstance(value, dict) else {}


class _Patience:
    """What one question may still take: time, bytes, and somebody's interest."""

    def __init__(self, timeouts: Timeouts, where: str, check: Callable[[], None]) -> None:
        self._stall_s = timeouts.stall_s
        self._connect_s = timeouts.connect_s
        self._where = where
        self._check = check
        self._left_bytes = BYTES_MAX
        self._deadline_s = time.monotonic() + min(timeouts.whole_s, WHOLE_S_MAX)

    def wait_s(self) -> float:
        """How long to wait for the next bytes. Raises FetchTimedOut, and what `check` raises."""
        self._check()
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise FetchTimedOut(f"{self._where}: the server does not come to an end of its answer; it is asked again")
        return min(left_s, self._stall_s)

    def take(self, count: int) -> None:
        """Raises ArtifactTooLarge."""
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise ArtifactTooLarge(f"{self._where}: the server's answer about it is larger than {BYTES_MAX} bytes")

    def connect(self, address: tuple[str, int], *others: Any) -> socket.socket:
        """To the first of the name's addresses that answers: a stranger may have named a hundred that do not."""
        failed: OSError = OSError("the name has no address")
        for _, _, _, _, found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            wait_s = min(self.wait_s(), self._connect_s)
            try:
                connected = socket.create_connection((str(found[0]), int(found[1])), wait_s)
            except OSError as error:
                failed = error
            else:
                connected.settimeout(self.wait_s())
                return connected
        raise failed


class _Patiently(io.RawIOBase):
    """The bytes of a connection, each read of which may be the last."""

    def __init__(self, connected: socket.socket, patience: _Patience) -> None:
        self._connected = connected
        self._bytes = connected.makefile("rb", buffering=0)
        self._patience = patience

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


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, patience: _Patience, **others: Any) -> None:
        super().__init__(sock, **others)
        self.fp.close()
        self.fp = io.BufferedReader(_Patiently(sock, patience))


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, patience: _Patience) -> None:
        super().__init__()
        self._patience = patience

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_connection, HTTPConnection, self._patience), req)


class _Secure(urllib.request.HTTPSHandler):
    def __init__(self, patience: _Patience, context: ssl.SSLContext) -> None:
        super().__init__()
        self._patience = patience
        self._trust = context

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        connection = partial(_connection, HTTPSConnection, self._patience, context=self._trust)
        return self.do_open(connection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, check_server: Callable[[str], None], names: Collection[str], where: str) -> None:
        self._check_server = check_server
        self._names = {name.lower() for name in names}
        self._where = where

    def redirect_request(self, req: urllib.request.Request, *others: Any) -> urllib.request.Request | None:
        *_, url = others
        parts = urlsplit(url)
        if parts.scheme != "https" and (req.type == "https" or parts.scheme != "http"):
            raise BadArtifact(f"{self._where}: the server redirects to {parts.scheme[:10]!r}, where TLS is asked for")
        self._check_server(url)
        request = super().redirect_request(req, *others)
        if request is not None and origin_of(url) is not None and origin_of(url) == origin_of(req.full_url):
            for name, value in req.unredirected_hdrs.items():
                if name.lower() in self._names:
                    request.add_unredirected_header(name, value)
        return request


def ask(
    url: str,
    headers: Mapping[str, str],
    timeouts: Timeouts,
    certificate: str,
    where: str,
    check: Callable[[], None],
    check_server: Callable[[str], None] = lambda _: None,
    *,
    headers_only: bool = False,
) -> Answer:
    """GET. Raises FetchFailed where no answer comes, and what `check` raises when nobody waits for it. Blocking.
    `check_server` raises for the URL of a server that a redirect must not lead to. `headers_only`: the body is left."""
    patience = _Patience(timeouts, where, check)
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    context = ssl.create_default_context()
    if certificate:  # beside those that this machine trusts, as in obstore: a redirect leads to others
        context.load_verify_locations(cadata=certificate)
    opener = urllib.request.build_opener(
        _Plain(patience), _Secure(patience, context), _Redirects(check_server, headers, where)
    )
    opener.addheaders = [("User-Agent", "hexcomb")]
    try:
        try:
            answer = opener.open(request, timeout=patience.wait_s())
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            if answer.status in _REDIRECTS:
                raise FetchFailed(f"{where}: the server redirects in circles, or to nowhere; it is tried again later")
            body = b"" if headers_only else answer.read()
            return Answer(answer.status, answer.headers, body, urldefrag(answer.geturl()).url)
    except (OSError, HTTPException, ValueError) as error:
        # Their texts hold URLs, and those may hold what is nobody's business.
        raise FetchFailed(
            f"{where}: no answer from the server ({type(error).__name__}); it is tried again later"
        ) from None


def _connection(kind: type[HTTPConnection], patience: _Patience, host: str, **others: Any) -> HTTPConnection:
    made = kind(host, **others)
    made._create_connection = patience.connect  # type: ignore[attr-defined]
    made.response_class = partial(_Response, patience=patience)  # type: ignore[assignment]
    return made
