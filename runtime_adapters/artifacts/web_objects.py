"""Reading objects from web servers, by conditional GETs whose every redirect is judged (`web`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.errors import ArtifactChanged, ArtifactDenied, ArtifactNotFound, FetchFailed
from runtime_adapters.artifacts.foreign import RangeIgnored
from runtime_adapters.artifacts.listing import RemoteObject
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.stored_objects import NotModified, Opened, StoredObjects
from runtime_adapters.artifacts.web import ANSWERS_NOT, Patience, Reply, get, no_answer
from runtime_adapters.errors import AdapterError, BadArtifact

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PASSING = (408, 425, 429)
_EPOCH = datetime.fromtimestamp(0, UTC)


class WebObjects(StoredObjects):
    """Objects of one server, by their paths."""

    def __init__(
        self,
        location: Location,
        base: str,
        own: Mapping[str, str],
        certificate: str,
        policy: SourcePolicy,
        timeouts: Timeouts,
        check: Callable[[], None],
    ) -> None:
        """`base`: the URL that an object's key is appended to. `own` headers go to its server alone. `check` raises
        when nobody waits for a look or a read any more."""
        super().__init__(location)
        self._base = base
        self._own = own
        self._certificate = certificate
        self._policy = policy
        self._timeouts = timeouts
        self._check_wanted = check

    def _get(
        self,
        key: str,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        offset: int = 0,
        end: int | None = None,
    ) -> Opened:
        asked: dict[str, str] = {}
        if if_match:
            asked["If-Match"] = if_match
        if if_none_match:
            asked["If-None-Match"] = if_none_match
        if offset or end is not None:
            asked["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
        where = f"uri {self._location.shown!r}"
        reply = get(
            self._base + quote(key, safe="/:@!$&'()*+,;=~"),
            Patience(self._timeouts, where, self._check_wanted, whole_s=self._timeouts.whole_s),
            own=self._own,
            headers=asked,
            certificate=self._certificate,
            check_server=self._policy.check_server,
        )
        try:
            return _opened(reply, where, is_ranged="Range" in asked)
        except AdapterError:
            reply.close()
            raise


class ContentObjects(WebObjects):
    """Objects whose keys name their content, so that a key never means other bytes; their ETags may say anything."""

    def _is_still(self, item: RemoteObject, opened: Opened) -> bool:
        return opened.size_bytes == item.size_bytes

    def _get(
        self,
        key: str,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        offset: int = 0,
        end: int | None = None,
    ) -> Opened:
        return super()._get(key, offset=offset, end=end)


def _opened(reply: Reply, where: str, *, is_ranged: bool) -> Opened:
    _check_status(reply.status, where)
    if is_ranged and reply.status != 206:
        raise RangeIgnored(f"{where}: the server does not go on where a download stopped; it is read again")
    length = reply.length_bytes
    if length is None:
        raise BadArtifact(
            f"{where}: the server does not say how long the object is (no Content-Length); serve it as a plain file"
        )
    begin, size_bytes = 0, length
    if reply.status == 206:
        said = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        if not said or int(said[2]) - int(said[1]) + 1 != length:
            raise FetchFailed(f"{where}: the server sends a part and does not say which; it is tried again later")
        begin, size_bytes = int(said[1]), int(said[3])
    etag = reply.headers.get("ETag")
    return Opened(size_bytes, etag, _modified(reply.headers.get("Last-Modified")), begin, _body(reply, where))


def _body(reply: Reply, where: str) -> Iterator[bytes]:
    try:
        yield from reply.chunks()
    except ANSWERS_NOT as error:
        raise no_answer(error, where) from None


def _modified(said: str | None) -> datetime:
    try:
        found = parsedate_to_datetime(said) if said else _EPOCH
    except ValueError:
        return _EPOCH
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _check_status(status: int, where: str) -> None:
    if status in (200, 206):
        return
    said = f" (HTTP {status})"
    if status == 304:
        raise NotModified(f"{where}: the object changed while it was read{said}; it is read again")
    if status == 404:
        raise ArtifactNotFound(f"{where}: nothing is there{said}; check the uri and the storage key's endpoint")
    if status in (401, 403):
        raise ArtifactDenied(f"{where}: the server denies access{said}; check the storage key or the uri's signature")
    if status == 412:
        raise ArtifactChanged(f"{where}: the object changed while it was read{said}; it is read again")
    if status == 416:
        raise ArtifactChanged(f"{where}: the object is shorter than it was{said}; it is read again")
    if status < 500 and status not in _PASSING:
        raise BadArtifact(f"{where}: the server refuses the request{said}; check the uri and the storage key")
    raise FetchFailed(f"{where}: the server fails{said}; it is tried again later")
