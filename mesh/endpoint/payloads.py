"""What clients ask and are answered, handed on to whoever watches models: ModelMesh's payload processors.

    http://HOST/PATH?MODEL#METHOD     POSTs each as JSON
    logger://?MODEL#METHOD            writes a line to the pod's log, without the contents

`MODEL` and `METHOD` narrow them down (empty, or `*`: all). The JSON is ModelMesh's: `id` (the same for a request and
its answer), `modelid` (as the client named it), `vModelId`, `method`, `kind` (`request` or `response`), `status`, and
`data`, the message in base64.

Nobody waits for a watcher: so many payloads wait for it, and further ones are dropped and counted. While there is a
processor, requests take the ordinary path, since the quick one looks at nothing that it need not.

Deliberately absent: HTTP requests' own bodies (what is handed on is the message that they become), and forwarded calls,
which the pod that the client called has handed on.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import queue
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import unquote, urlsplit

from mesh.endpoint.access import Access
from mesh.endpoint.status import as_transport_error
from mesh.transport.base import Call, Reply, ReplyWithTrailers, StatusCode, UnaryHandler
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.peek import peek

log = logging.getLogger("hexcomb.payloads")

WAITING_MAX = 64
"""Payloads that wait for one watcher: ModelMesh's own limit. Each may be as large as a message."""
TIMEOUT_S = 10.0
_SCHEMES = ("http", "https", "logger")


@dataclass(frozen=True, slots=True)
class Payload:
    """One message of one call."""

    id: str
    model: str
    alias: str
    method: str
    kind: str
    status: str
    data: bytes

    def to_json(self) -> bytes:
        """As ModelMesh writes it."""
        told = {"id": self.id, "modelid": self.model, "vModelId": self.alias, "method": self.method, "kind": self.kind}
        data = base64.b64encode(self.data).decode()
        return json.dumps({**told, "status": self.status, "data": data}).encode()


@dataclass(frozen=True, slots=True)
class Watcher:
    """One processor. An empty `model` or `method`: any."""

    url: str
    """Empty: the pod's log."""
    model: str
    method: str

    def wants(self, payload: Payload) -> bool:
        """Whether the payload is one of those that it is for."""
        return self.model in ("", payload.model, payload.alias) and self.method in ("", payload.method)


def parse_watcher(text: str) -> Watcher:
    """ValueError where it is none."""
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES or (parts.scheme != "logger" and not parts.hostname):
        raise ValueError(f"{text[:200]!r} is no payload processor: http(s)://HOST/PATH?MODEL#METHOD, or logger://")
    model, method = unquote(parts.query).removeprefix("/"), unquote(parts.fragment)
    url = "" if parts.scheme == "logger" else parts._replace(query="", fragment="").geturl()
    return Watcher(url, "" if model == "*" else model, "" if method == "*" else method)


class PayloadProcessors:
    """Hands payloads on, each watcher's by a thread of its own."""

    def __init__(self, watchers: Sequence[Watcher], access: Access) -> None:
        self._access = access
        self._prefix = uuid.uuid4().hex[:12]
        self._ordinals = itertools.count(1)
        self._lines: list[tuple[Watcher, queue.Queue[Payload]]] = []
        self.dropped = 0
        """Payloads that no watcher was told of in time."""
        for watcher in watchers:
            line: queue.Queue[Payload] = queue.Queue(WAITING_MAX)
            self._lines.append((watcher, line))
            threading.Thread(target=_hand_on, args=(watcher, line), name="hexcomb-payloads", daemon=True).start()

    @property
    def any(self) -> bool:
        """Whether there is any watcher."""
        return bool(self._lines)

    def watched(self, handler: UnaryHandler) -> UnaryHandler:
        """The handler, whose calls and answers are handed on."""
        if not self._lines:
            return handler

        async def answer(call: Call) -> Reply:
            if self._access.is_peer(call):
                return await handler(call)
            number = f"{self._prefix}-{next(self._ordinals)}"
            model, alias = _names(call)
            method = call.method.removeprefix("/")
            self._tell(Payload(number, model, alias, method, "request", "", bytes(call.body)))
            try:
                reply = await handler(call)
            except Exception as error:
                known = as_transport_error(error)
                status = StatusCode.INTERNAL if known is None else known.status
                self._tell(Payload(number, model, alias, method, "response", status.name, b""))
                raise
            body = reply.body if isinstance(reply, ReplyWithTrailers) else reply
            self._tell(Payload(number, model, alias, method, "response", StatusCode.OK.name, body))
            return reply

        return answer

    def _tell(self, payload: Payload) -> None:
        for watcher, line in self._lines:
            if not watcher.wants(payload):
                continue
            try:
                line.put_nowait(payload)
            except queue.Full:
                self.dropped += 1
                if self.dropped & (self.dropped - 1) == 0:  # the first, the second, the fourth, ...
                    log.warning(
                        "%d payloads were dropped: %s is slower than what it watches", self.dropped, watcher.url
                    )


def _names(call: Call) -> tuple[str, str]:
    """The model and the alias, as far as the client named them; a name in the message is one of either."""
    model = call.metadata_value(messages.MODEL_ID_METADATA) or ""
    alias = call.metadata_value(messages.VMODEL_ID_METADATA) or ""
    if not model and not alias and call.method == messages.MODEL_INFER.path:
        try:
            model = peek(call.body).model_name
        except InvalidMessage:
            model = ""
    return model, alias


def _hand_on(watcher: Watcher, line: queue.Queue[Payload]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the environment's are none of ours
    while True:
        payload = line.get()
        if not watcher.url:
            size = len(payload.data)
            log.info("%s %s of %s: %s %s, %d bytes", payload.kind, payload.id, payload.model, payload.method,
                     payload.status, size)  # fmt: skip
            continue
        request = urllib.request.Request(
            watcher.url, payload.to_json(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                answer.read()
        except (OSError, ValueError, HTTPException) as error:  # URLError among them
            log.warning("payload %s was not taken by %s: %s", payload.id, watcher.url, error)
