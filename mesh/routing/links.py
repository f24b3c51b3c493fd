"""This pod's lines to the others: one for each, counted, bounded, and cut when its pod is found dead.

A call that waits for a pod which has stopped answering must not wait for the client's deadline. When the probes find a
pod down, `cut` ends every call to it at once, as a broken line, and the router asks another pod: inference has no
effects, so asking twice is safe.

Every call shows the key of the pod that is called (`mesh.endpoint.access`): it stands in that pod's record beside its
address, so whoever knows where to call knows with which key.

Deliberately absent: who is down (`probes`), what to do then (`router`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.transport.base import Dial, Heard, Line, LineBroken, Metadata, PeerWays, Reply, StatusCode, TransportError
from mesh.wire import messages
from placement.policy.snapshot import Pod


@dataclass(slots=True)
class _Link:
    ways: PeerWays
    peer_key: str
    line: Line
    in_flight: int = 0
    calls: dict[asyncio.Task[Any], bool] = field(default_factory=dict)
    """In the order in which they came; True: `cut` has cancelled it, and it has not noticed yet."""
    begun: set[_Begun] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Begun:
    """A call that nobody waits for: `heard` is told how it ends."""

    links: Links
    pod_id: str
    link: _Link
    heard: Heard
    hang_up: Callable[[], None] = lambda: None
    """The line's way to cancel it."""

    def ended(self, outcome: Reply | TransportError | LineBroken) -> None:
        """The line has an outcome."""
        self.links.forget(self)
        self.heard(outcome)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self.links.forget(self)
        self.hang_up()


class Links:
    """Lines to peers. Belongs to the event loop."""

    def __init__(self, dial: Dial, own_pod: str, calls_per_pod_max: int) -> None:
        """`calls_per_pod_max`: forwarded calls to one pod at a time; beyond it the pod counts as full."""
        self._dial = dial
        self._own_pod = own_pod
        self._calls_per_pod_max = calls_per_pod_max
        self._links: dict[str, _Link] = {}
        self._in_flight: dict[str, int] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Calls in flight by pod: a live view, for choosing."""
        return self._in_flight

    def follow(self, pods: Iterable[Pod]) -> None:
        """These are the pods now: new ones are dialled, those that left or moved are hung up."""
        present = {pod.id: pod for pod in pods if pod.id != self._own_pod and pod.address}
        for pod_id, link in list(self._links.items()):
            if pod_id not in present or _ways_to(present[pod_id]) != link.ways:
                self._hang_up(pod_id)
        for pod_id, pod in present.items():
            if pod_id not in self._links:
                ways = _ways_to(pod)
                self._links[pod_id] = _Link(ways, pod.peer_key, self._dial(ways))
                self._in_flight[pod_id] = 0
            else:
                self._links[pod_id].peer_key = pod.peer_key

    def _hang_up(self, pod_id: str) -> None:
        self.cut(pod_id)
        link = self._links.pop(pod_id)
        self._in_flight.pop(pod_id, None)
        task = asyncio.get_running_loop().create_task(link.line.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def call(
        self, pod_id: str, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None
    ) -> Reply:
        """One call to a pod. Raises LineBroken, TransportError (its answer, or RESOURCE_EXHAUSTED: it is full)."""
        link = self._links.get(pod_id)
        if link is None:
            raise LineBroken(f"pod {pod_id!r} has left the pool", sent=False)
        if link.in_flight >= self._calls_per_pod_max:
            raise TransportError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"{link.in_flight} calls to pod {pod_id!r} are in flight, the limit; try again shortly",
                0.1,
            )
        task = asyncio.current_task()
        assert task is not None
        link.in_flight += 1
        self._in_flight[pod_id] = link.in_flight
        link.calls[task] = False
        try:
            shown = (*metadata, (messages.PEER_KEY_METADATA, link.peer_key))
            return await link.line.call(path, body, shown, deadline_s)
        except asyncio.CancelledError:
            if link.calls[task] and task.uncancel() == 0:
                raise _hung_up(pod_id, link) from None
            raise
        finally:
            del link.calls[task]
            link.in_flight -= 1
            if self._links.get(pod_id) is link:
                self._in_flight[pod_id] = link.in_flight

    def begin(
        self,
        pod_id: str,
        path: str,
        body: bytes | memoryview,
        metadata: Metadata,
        deadline_s: float | None,
        heard: Heard,
    ) -> Callable[[], None] | None:
        """One call to a pod, without waiting for it: see `Line.begin`. None where `call` would refuse it, too."""
        link = self._links.get(pod_id)
        if link is None or link.in_flight >= self._calls_per_pod_max:
            return None

        begun = _Begun(self, pod_id, link, heard)
        shown = (*metadata, (messages.PEER_KEY_METADATA, link.peer_key))
        hang_up = link.line.begin(path, body, shown, deadline_s, begun.ended)
        if hang_up is None:
            return None
        begun.hang_up = hang_up
        link.begun.add(begun)
        link.in_flight += 1
        self._in_flight[pod_id] = link.in_flight
        return begun.cancel

    def forget(self, begun: _Begun) -> None:
        """The call has ended."""
        link = begun.link
        link.begun.discard(begun)
        link.in_flight -= 1
        if self._links.get(begun.pod_id) is link:
            self._in_flight[begun.pod_id] = link.in_flight

    def cut(self, pod_id: str) -> None:
        """End every call to this pod: LineBroken for those who wait."""
        link = self._links.get(pod_id)
        if link is None:
            return
        for task, is_cut in link.calls.items():
            if not is_cut:
                link.calls[task] = True
                task.cancel()
        for begun in list(link.begun):
            begun.cancel()
            begun.heard(_hung_up(pod_id, link))

    async def close(self) -> None:
        """Hang up everywhere."""
        for pod_id in list(self._links):
            self._hang_up(pod_id)
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)


def _hung_up(pod_id: str, link: _Link) -> LineBroken:
    return LineBroken(f"pod {pod_id!r} at {link.ways.address} does not answer any more", sent=True, cut=True)


def _ways_to(pod: Pod) -> PeerWays:
    return PeerWays(pod.address, pod.peer_address, pod.peer_socket)
