"""Probing the peers: who can be reached from here, found out by asking, not from leases.

Each pod asks its peers every half second whether they are there. In a large pool it asks those that it has calls with
and a few more, chosen by hash so that every pod is watched by some. What it finds is this pod's own view: the network
between two others is theirs to know.

A probe is answered on the peer's event loop, so a frozen process or a stalled loop is noticed, not only a dead host.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping

from mesh.routing.links import Links
from mesh.routing.reachability import Answer, Reachability, after_probe
from mesh.transport.base import LineBroken, ReplyWithTrailers, StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import hexcomb_pb2
from placement.policy.snapshot import Pod

log = logging.getLogger("hexcomb.probes")

STALL_S = 0.25
"""A timer that rings so much later than it was set means that this pod was stalled itself."""
WATCHED_MAX = 16
"""Peers that are probed without having calls from here."""


class Probes:
    """Reachability of every peer, kept by one task each. Belongs to the event loop."""

    def __init__(
        self,
        links: Links,
        own_pod: str,
        *,
        interval_s: float,
        timeout_s: float,
        clock: Callable[[], float],
        on_change: Callable[[str, Reachability], None],
    ) -> None:
        """`on_change`: a peer went out of the routes, or came back."""
        self._links = links
        self._own_pod = own_pod
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._on_change = on_change
        self._peers: dict[str, Reachability] = {}
        self._incarnations: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asking: set[str] = set()
        """Peers whose probe is under way, or begins in this turn of the loop."""
        self._down: frozenset[str] = frozenset()
        self._learned_more = asyncio.Event()
        """Set, and replaced, each time that a peer has answered or has not, came or went."""

    @property
    def down(self) -> frozenset[str]:
        """Peers that are out of the routes."""
        return self._down

    @property
    def peers(self) -> Mapping[str, Reachability]:
        """Every peer; a live view."""
        return self._peers

    def follow(self, pods: Iterable[Pod]) -> None:
        """These are the pods now. A restarted pod begins anew, as reachable."""
        present = {pod.id: pod.incarnation for pod in pods if pod.id != self._own_pod and pod.address}
        for pod_id in list(self._tasks):
            if self._incarnations[pod_id] != present.get(pod_id):
                self._tasks.pop(pod_id).cancel()
                self._asking.discard(pod_id)
                del self._peers[pod_id], self._incarnations[pod_id]
        for pod_id, incarnation in present.items():
            if pod_id not in self._tasks:
                self._peers[pod_id] = Reachability(last_good_s=self._clock())
                self._incarnations[pod_id] = incarnation
                self._tasks[pod_id] = asyncio.get_running_loop().create_task(self._watch(pod_id))
        self._down = frozenset(pod_id for pod_id, peer in self._peers.items() if not peer.up)
        self._tell()

    def broke(self, pod_id: str) -> None:
        """A call's line broke: ask now, not at the next turn. A thousand calls may break at once."""
        task = self._tasks.get(pod_id)
        if task is not None and self._peers[pod_id].up and pod_id not in self._asking:
            self._asking.add(pod_id)
            self._tasks[pod_id] = asyncio.get_running_loop().create_task(self._watch(pod_id, at_once=True))
            task.cancel()

    async def ask_all(self, until: Callable[[], bool]) -> None:
        """Somebody saw a peer go, and cannot say which: ask every one now, not at its next turn.

        Returns when each has answered or is out of the routes, or as soon as `until` holds.
        """
        began_s = self._clock()
        for pod_id in self._peers:
            self.broke(pod_id)
        while not until() and any(peer.up and peer.last_good_s < began_s for peer in self._peers.values()):
            await self._learned_more.wait()

    async def _watch(self, pod_id: str, at_once: bool = False) -> None:
        while True:
            if not at_once:
                await asyncio.sleep(self._interval_s)
            if not at_once and not self._is_watched(pod_id):
                continue
            self._asking.add(pod_id)
            answer = await self._probe(pod_id)
            self._asking.discard(pod_id)
            peer = self._learned(pod_id, answer)
            # The second failure is what counts: it is not waited for.
            at_once = answer is Answer.SILENT and peer.up

    def _is_watched(self, pod_id: str) -> bool:
        if len(self._peers) <= WATCHED_MAX or not self._peers[pod_id].up or self._links.in_flight.get(pod_id, 0):
            return True
        digest = hashlib.blake2b(f"{self._own_pod}\x00{pod_id}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % len(self._peers) < WATCHED_MAX

    async def _probe(self, pod_id: str) -> Answer:
        """One turn: ask once."""
        began_s = self._clock()
        body = hexcomb_pb2.ProbeRequest(from_pod=self._own_pod).SerializeToString()
        try:
            # The line's own deadline ends the call at the peer, too; the timeout here is for a line that hangs.
            async with asyncio.timeout(self._timeout_s + STALL_S / 2):
                reply = await self._links.call(pod_id, messages.PROBE.path, body, (), began_s + self._timeout_s)
        except LineBroken as broken:
            return Answer.SILENT if broken.sent and self._clock() - began_s >= self._timeout_s else Answer.REFUSED
        except TimeoutError:
            late_s = self._clock() - began_s - self._timeout_s
            return Answer.STALLED if late_s > STALL_S else Answer.SILENT
        except TransportError as error:
            if error.status is StatusCode.DEADLINE_EXCEEDED:
                late_s = self._clock() - began_s - self._timeout_s
                return Answer.STALLED if late_s > STALL_S else Answer.SILENT
            if error.status is StatusCode.UNIMPLEMENTED:
                return Answer.REFUSED  # no pod: another server has its address by now
            return Answer.GOOD  # it answered, if only that it has too much to do
        try:
            answered = messages.parse_response(
                messages.PROBE, reply.body if isinstance(reply, ReplyWithTrailers) else reply
            )
        except InvalidMessage:
            return Answer.REFUSED
        if answered.incarnation != self._incarnations.get(pod_id):
            return Answer.REFUSED  # another process has its address by now
        return Answer.GOOD

    def _learned(self, pod_id: str, answer: Answer) -> Reachability:
        """The peer after this answer; by then it may have been let go of, and this task with it."""
        before = self._peers[pod_id]
        after = after_probe(before, answer, self._clock())
        self._peers[pod_id] = after
        if after.up == before.up:
            self._tell()
            return after
        if after.up:
            self._down -= {pod_id}
            log.info("pod %s answers again", pod_id)
        else:
            self._down |= {pod_id}
            log.warning("pod %s is out of the routes: %s", pod_id, after.why)
            self._links.cut(pod_id)
        self._on_change(pod_id, after)
        self._tell()
        return after

    def _tell(self) -> None:
        self._learned_more.set()
        self._learned_more = asyncio.Event()

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
