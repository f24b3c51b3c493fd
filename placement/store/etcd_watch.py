"""Following etcd: every change under some prefixes, in order and whole, over any number of disconnections.

**One watch over one range.** Several prefixes are watched as the range that covers them, and what lies between them
is dropped here. etcd delivers one range in the order of revisions and never splits a revision over two messages
(unless asked to), so no batch ever shows half a transaction. A watcher for each prefix would have to be merged: each
tells only of revisions that touch it, so the slowest would hold back the others until a progress notification came,
and etcd before 3.4.25 and 3.5.8 sends those ahead of the events that they speak of. The price is events that are
thrown away; prefixes that are watched together lie together (`placement.keys`).

**Position.** `next_revision` moves with each event, also one that is dropped, and with progress: the notifications
that etcd sends by itself, and the answers to our questions where the member's version is known to answer truly. The
watch is taken up one revision *before* it: etcd calls a revision compacted only when it lies below the compacted one,
and of that one itself it has forgotten the deletions. What comes twice is dropped.

**Silence.** A quiet watch is asked how far it is. One that does not answer is on a dead connection, which gRPC may
notice much later, and is made anew.

**Another store.** After a wipe etcd takes a watch from a future revision and delivers nothing, for ever. So after each
connection, once the stream stands, one linearised read of the pool's mark (`placement.store.format`) tells the
cluster, the revision and the pool; unless all three go on from what was seen, the watch ends with StoreReplaced.
The stream comes first: a wipe after it breaks the stream.

A task reads ahead of the consumer, up to a bound, so that what has come meanwhile is one batch. It tries again for as
long as the store is open; only what trying again cannot mend ends the watch.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from placement.errors import Compacted, StoreError, StoreReplaced, StoreUnavailable
from placement.store.base import Event, WatchBatch
from placement.store.etcd_api.generated import etcd_pb2
from placement.store.etcd_api.methods import RANGE, STATUS
from placement.store.etcd_connection import RETRY_FIRST_S, RETRY_MAX_S, Connection
from placement.store.etcd_errors import CallFailure, Verdict, refusal
from placement.store.etcd_member import Member, Stream
from placement.store.etcd_requests import Keyspace
from placement.store.format import FORMAT_KEY, format_from_json

log = logging.getLogger(__name__)

BATCH_EVENTS_MAX = 500
"""Events in one batch, unless one revision has more: what a watcher digests in about 10 ms of the loop."""
BUFFER_EVENTS_MAX = 5_000
"""Events read ahead of the consumer; beyond that etcd keeps them."""

WatchStream = Stream[etcd_pb2.WatchRequest, etcd_pb2.WatchResponse]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Which store it is that revisions belong to."""

    cluster_id: int
    pool_id: str | None
    """From the pool's mark; None: it has none (yet)."""


@dataclass(slots=True)
class LineageSeen:
    """What all watches of one store in this process last saw of it; a new one goes on from there."""

    now: Lineage


def mark_request(keyspace: Keyspace) -> etcd_pb2.RangeRequest:
    """Read the pool's mark, linearised: its answer tells lineage and revision of the store as it is now."""
    return etcd_pb2.RangeRequest(key=keyspace.key(FORMAT_KEY))


def lineage_of(answer: etcd_pb2.RangeResponse) -> Lineage:
    """What the answer to `mark_request` says."""
    mark = format_from_json(answer.kvs[0].value) if answer.kvs else None
    return Lineage(answer.header.cluster_id, mark.pool_id if mark is not None else None)


def lost_history(before: Lineage, found: Lineage, next_revision: int, store_revision: int) -> str | None:
    """Why revisions up to `next_revision` were not this store's; None: it goes on from them."""
    if found.cluster_id != before.cluster_id:
        return f"cluster {found.cluster_id:x} in the place of {before.cluster_id:x}"
    if before.pool_id is not None and found.pool_id != before.pool_id:
        return "the pool's mark is gone" if found.pool_id is None else "the pool has been made anew"
    if store_revision < next_revision - 1:
        return f"revision {next_revision - 1} was seen before"
    return None


def answers_truly(version: str) -> bool:
    """Whether a member of this version, asked for progress, answers only what it has delivered (etcd issue 15220)."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return False
    major, minor, patch = (int(part) for part in match.groups())
    fixed_at = {(3, 4): 25, (3, 5): 8}.get((major, minor))
    return (major, minor) > (3, 5) if fixed_at is None else patch >= fixed_at


class WatchFeed:
    """One watch and its buffer. `run` fills it, in a task; `next_batch` empties it."""

    def __init__(
        self,
        connection: Connection,
        keyspace: Keyspace,
        prefixes: Sequence[str],
        from_revision: int,
        seen: LineageSeen,
    ) -> None:
        """What `seen` holds now is the store that `from_revision` was learnt from."""
        self.next_revision = from_revision
        self._seen = seen
        self._lineage = seen.now
        self._connection = connection
        self._keyspace = keyspace
        self._prefixes = tuple(prefixes)
        self._token = ""
        self._denied = False
        self._pause_s = RETRY_FIRST_S
        self._buffer: deque[Event] = deque()
        self._ended: StoreError | None = None
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()

    async def next_batch(self) -> WatchBatch:
        """The next changes, once there are any. Raises what has ended the watch."""
        while not self._buffer:
            if self._ended is not None:
                raise self._ended
            self._filled.clear()
            await self._filled.wait()
        events: list[Event] = []
        while self._buffer:
            event = self._buffer[0]
            if len(events) >= BATCH_EVENTS_MAX and event.kv.mod_revision != events[-1].kv.mod_revision:
                break
            events.append(self._buffer.popleft())
        self._drained.set()
        return WatchBatch(events[-1].kv.mod_revision, tuple(events))

    def end(self, error: StoreError) -> None:
        """Nothing more comes; what is buffered is still delivered."""
        self._ended = self._ended or error
        self._filled.set()

    async def run(self) -> None:
        """Follow until the watch ends; why it has ended reaches the consumer."""
        try:
            while self._ended is None:
                await self._follow_once()
        except StoreError as error:
            self.end(error)
        except Exception as error:
            log.exception("the watch from revision %d failed", self.next_revision)
            self.end(StoreUnavailable(f"the watch from revision {self.next_revision} failed: {error!r}"))
            raise

    async def _follow_once(self) -> None:
        """One turn: connect to a member and follow it until that fails, then wait a little."""
        member = self._connection.member
        try:
            await self._follow(member)
        except CallFailure as failure:
            self._note(failure)
            self._connection.move_on_from(member)
            level = logging.WARNING if self._pause_s == RETRY_FIRST_S else logging.DEBUG
            log.log(level, "the watch from revision %d is interrupted: %s", self.next_revision, failure)
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, RETRY_MAX_S)

    def _note(self, failure: CallFailure) -> None:
        """What a failure means for the next turn. Raises StoreRefused when there need be none."""
        if failure.verdict in (Verdict.TOKEN, Verdict.REFUSED):
            self._connection.forget_token(self._token)
        if failure.verdict is Verdict.REFUSED:
            # Early patch versions deny a watch whose token has expired like one without permission: once is not proof.
            if self._denied or not self._token:
                raise refusal(failure, self._connection.options) from failure
            self._denied = True

    async def _follow(self, member: Member) -> None:
        options = self._connection.options
        begin_s = options.connect_timeout_s + options.watch_silence_max_s
        self._token = await self._connection.token(member, options.call_timeout_s)
        stream = member.watch(self._token)
        try:
            member_id = await self._open(stream, begin_s)
            await self._check_lineage(member)
            believed = await self._is_believed(member, member_id)
            if self._pause_s > RETRY_FIRST_S:
                log.info("the watch goes on from revision %d, with %s", self.next_revision, member.endpoint)
            while True:
                message = await self._receive(stream)
                self._pause_s, self._denied = RETRY_FIRST_S, False
                self._take(message, member, believed)
                while len(self._buffer) >= BUFFER_EVENTS_MAX:
                    self._drained.clear()
                    await self._drained.wait()
        finally:
            stream.cancel()

    async def _open(self, stream: WatchStream, limit_s: float) -> int:
        """Begin the watch; the id of the member that follows it."""
        first, end = self._keyspace.range_over(self._prefixes)
        create = etcd_pb2.WatchCreateRequest(
            key=first, range_end=end, start_revision=max(1, self.next_revision - 1), progress_notify=True
        )
        await stream.send(etcd_pb2.WatchRequest(create_request=create), limit_s)
        created = await stream.receive(limit_s)
        if created is None:
            stream.renew()
            raise CallFailure(stream.member.endpoint, "DEADLINE_EXCEEDED", f"no watch within {limit_s:.0f} s")
        if created.canceled:
            self._take(created, stream.member, False)
        return created.header.member_id

    async def _check_lineage(self, member: Member) -> None:
        limit_s = self._connection.options.call_timeout_s
        answer = await member.call(RANGE, mark_request(self._keyspace), limit_s, self._token)
        before, self._lineage = self._lineage, lineage_of(answer)
        self._seen.now = self._lineage
        found = lost_history(before, self._lineage, self.next_revision, answer.header.revision)
        if found is not None:
            raise StoreReplaced(self.next_revision, answer.header.revision, found)

    async def _is_believed(self, member: Member, member_id: int) -> bool:
        try:
            status = await member.call(
                STATUS, etcd_pb2.StatusRequest(), self._connection.options.call_timeout_s, self._token
            )
        except CallFailure as failure:
            log.info("the version of %s is not known, so its answers on progress are not believed", failure)
            return False
        return status.header.member_id == member_id and answers_truly(status.version)

    async def _receive(self, stream: WatchStream) -> etcd_pb2.WatchResponse:
        """The next message; a stream that is silent is asked, and given up without an answer."""
        options = self._connection.options
        message = await stream.receive(options.watch_check_s)
        if message is None:
            ask = etcd_pb2.WatchRequest(progress_request=etcd_pb2.WatchProgressRequest())
            await stream.send(ask, options.watch_silence_max_s)
            message = await stream.receive(options.watch_silence_max_s)
        if message is None:
            stream.renew()
            silence_s = options.watch_check_s + options.watch_silence_max_s
            raise CallFailure(stream.member.endpoint, "DEADLINE_EXCEEDED", f"silent for {silence_s:.0f} s")
        return message

    def _take(self, message: etcd_pb2.WatchResponse, member: Member, believed: bool) -> None:
        """One message. Raises Compacted, and CallFailure when etcd ends the watch for another reason."""
        if message.canceled:
            if message.compact_revision:
                raise Compacted(self.next_revision, message.compact_revision)
            raise CallFailure(member.endpoint, _code_of(message.cancel_reason), message.cancel_reason or "canceled")
        if message.events:
            wanted = self._keyspace.events(message.events, self._prefixes, self.next_revision)
            self.next_revision = max(self.next_revision, message.events[-1].kv.mod_revision + 1)
            if wanted:
                self._buffer.extend(wanted)
                self._filled.set()
        elif not message.created and (believed or message.watch_id >= 0):
            self.next_revision = max(self.next_revision, message.header.revision + 1)


def _code_of(cancel_reason: str) -> str:
    # A cancelled watch has a reason but no status.
    if "permission denied" in cancel_reason:
        return "PERMISSION_DENIED"
    return "UNAUTHENTICATED" if "auth token" in cancel_reason else "UNAVAILABLE"
