"""Small answers over HTTP: what a registry or a hub says about its objects, with the headers that obstore keeps back.

The standard library's client: one connection a question, no more than `BYTES_MAX` of an answer, the operator's proxies
and no other word of the environment (no netrc). A redirect is followed without the credentials of the first request,
from TLS to TLS only, and where it leads to is judged like the first URL: a registry is a stranger, whose answer may
point into the pod's own network.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.errors import ArtifactTooLarge, FetchFailed
from runtime_adapters.errors import BadArtifact

BYTES_MAX = 32 * 1024 * 1024
"""A manifest has kilobytes; the list of a repository of 10,000 files, some megabytes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said, whatever its status."""

    status: int
    headers: Message
    body: bytes

    def json(self, where: str) -> dict[str, Any]:
        """The object in the body. Raises BadArtifact."""
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BadArtifact(f"{where}: the server's answer is no JSON object; check the uri")
        return found


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, check_server: Callable[[str], None], where: str) -> None:
        self._check_server = check_server
        self._where = where

    def redirect_request(self, req: urllib.request.Request, *others: Any) -> urllib.request.Request | None:
        *_, url = others
        parts = urlsplit(url)
        if parts.scheme != "https" and (req.type == "https" or parts.scheme != "http"):
            raise BadArtifact(f"{self._where}: the server redirects to {parts.scheme[:10]!r}, where TLS is asked for")
        self._check_server(f"{parts.scheme}://{parts.netloc}/")
        return super().redirect_request(req, *others)


def ask(
    url: str,
    headers: Mapping[str, str],
    timeouts: Timeouts,
    certificate: str,
    where: str,
    check_server: Callable[[str], None] = lambda _: None,
) -> Answer:
    """GET. Raises FetchFailed where no answer comes. Blocking. `check_server` raises for the URL of a server that a
    redirect must not lead to."""
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    context = ssl.create_default_context(cadata=certificate or None)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Redirects(check_server, where))
    opener.addheaders = [("User-Agent", "hexcomb")]
    try:
        with opener.open(request, timeout=timeouts.stall_s) as answer:
            return Answer(answer.status, answer.headers, _read(answer, where))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, _read(error, where))
    except (OSError, HTTPException) as error:
        # Their texts hold URLs, and those may hold what is nobody's business.
        raise FetchFailed(
            f"{where}: no answer from the server ({type(error).__name__}); it is tried again later"
        ) from None


def _read(answer: Any, where: str) -> bytes:
    body: bytes = answer.read(BYTES_MAX + 1)
    if len(body) > BYTES_MAX:
        raise ArtifactTooLarge(f"{where}: the server's answer about it is larger than {BYTES_MAX} bytes")
    return body
