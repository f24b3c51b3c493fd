"""Small answers over HTTP: what a registry or a hub says about its objects, with the headers that obstore keeps back.

No more than `BYTES_MAX` of an answer, and one deadline for a question with all its redirects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.web import ANSWERS_NOT, Patience, get, no_answer
from runtime_adapters.errors import BadArtifact

BYTES_MAX = 32 * 1024 * 1024
"""A manifest has kilobytes; the list of a repository of 10,000 files, some megabytes."""
WHOLE_S_MAX = 30.0
"""Of one question with its redirects: a server that takes this long for a small answer gives none."""


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
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise BadArtifact(f"{where}: the server's answer is no JSON object; check the uri")
        return found


def fields_of(value: object) -> dict[str, Any]:
    """Of a JSON object; none of what is no object, whatever a stranger put in its place."""
    return value if isinstance(value, dict) else {}


def ask(
    url: str,
    headers: Mapping[str, str],
    timeouts: Timeouts,
    certificate: str,
    where: str,
    check: Callable[[], None],
    check_server: Callable[[str], None] = lambda _: None,
) -> Answer:
    """GET; the headers are for the URL's own server. Blocking. Raises FetchFailed where no answer comes, what `check`
    raises when nobody waits for it, and what `check_server` raises for a server that a redirect must not lead to."""
    patience = Patience(timeouts, where, check, whole_s=min(timeouts.whole_s, WHOLE_S_MAX), bytes_max=BYTES_MAX)
    reply = get(url, patience, own=headers, headers={}, certificate=certificate, check_server=check_server)
    try:
        return Answer(reply.status, reply.headers, reply.whole())
    except ANSWERS_NOT as error:
        raise no_answer(error, where) from None
    finally:
        reply.close()
