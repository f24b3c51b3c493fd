"""Is this pod fit to take requests? Asked before it becomes ready, in a pool that runs already.

Two things are found out by trying: whether the others reach it where it says that it is (one of them is asked to dial
back), and whether it can load what they load (`placement.policy.bootstrap`), so that a release that cannot load stops
itself. A pool without other pods proves nothing, and asks nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import islice

from cache.types import RefusalKind
from mesh.generations import wanted
from mesh.loading.loading import Loading, Refused
from mesh.routing.links import Links
from mesh.transport.base import LineBroken, ReplyWithTrailers, TransportError
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import hexcomb_pb2
from placement.membership import Membership
from placement.policy.bootstrap import BootstrapLimits, KeepTrying, NeverReady, Ready, TrialLoad, judge_bootstrap
from placement.policy.snapshot import ModelFacts, ModelName, Pod
from placement.records import ModelRecord
from placement.registry import Registry

log = logging.getLogger("hexcomb.fitness")

DIAL_BACK_TIMEOUT_S = 6.0
ASKED_MAX = 3
"""Pods that are asked to dial back before their answer is believed."""
CANDIDATES_MAX = 16
"""Models that are tried, at most; some of them may fail everywhere."""

_FAILURES = frozenset({RefusalKind.LOAD_FAILED_PERMANENT, RefusalKind.LOAD_FAILED_TRANSIENT})


class Fitness:
    """The examination of this pod. Belongs to the event loop."""

    def __init__(
        self,
        own_pod: str,
        membership: Membership,
        registry: Registry,
        links: Links,
        loading: Loading,
        facts_of: Callable[[ModelRecord], ModelFacts],
        *,
        trials: int,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._own_pod = own_pod
        self._membership = membership
        self._registry = registry
        self._links = links
        self._loading = loading
        self._facts_of = facts_of
        self._trials_wanted = trials
        self._timeout_s = timeout_s
        self._clock = clock
        self._trials: list[TrialLoad] = []

    async def why_unfit(self) -> str:
        """What keeps this pod from being ready; empty: nothing."""
        view = self._membership.view
        others = [pod for pod in view.pods.values() if pod.id != self._own_pod and pod.ready and not pod.draining]
        if not others:
            return ""
        return await self._unreachable(others) or await self._unable()

    async def _unreachable(self, others: list[Pod]) -> str:
        own = self._membership.view.pods.get(self._own_pod)
        if own is None:
            return "the store does not have this pod's record yet"
        request = hexcomb_pb2.DialBackRequest(address=own.address, pod=own.id, incarnation=own.incarnation)
        complaints = []
        for pod in sorted(others, key=lambda pod: pod.id)[:ASKED_MAX]:
            deadline_s = self._clock() + DIAL_BACK_TIMEOUT_S
            try:
                reply = await self._links.call(
                    pod.id, messages.DIAL_BACK.path, request.SerializeToString(), (), deadline_s
                )
                body = reply.body if isinstance(reply, ReplyWithTrailers) else reply
                response = messages.parse_response(messages.DIAL_BACK, body)
            except (LineBroken, TransportError, InvalidMessage) as error:
                log.info("pod %s did not dial back: %s", pod.id, error)
                continue
            if response.reached:
                return ""
            complaints.append(response.message)
        if not complaints:
            return ""  # nobody could be asked: their trouble, not proof of ours
        return (
            f"other pods do not reach this one at {own.address} ({complaints[0]}); set --advertise-address to "
            "HOST:PORT where they do"
        )

    async def _unable(self) -> str:
        if not self._trials_wanted:
            return ""
        ends_s = self._clock() + self._timeout_s
        candidates = self._candidates()
        limits = BootstrapLimits(successes_wanted=self._trials_wanted)
        while True:
            verdict = judge_bootstrap(self._trials, len(candidates), limits)
            match verdict:
                case Ready():
                    return ""
                case NeverReady(reason):
                    return reason
                case KeepTrying(reason):
                    if not candidates:
                        self._trials.clear()  # what failed may pass: the next examination begins anew
                        return reason
                    if self._clock() >= ends_s:
                        return "" if not any(not trial.loaded for trial in self._trials) else reason
            await self._try(candidates.pop(0), ends_s)

    def _candidates(self) -> list[ModelName]:
        """Models that others serve and this pod has to be able to, hottest first, that were not tried."""
        view = self._membership.view
        heat: dict[ModelName, float] = {}
        for pod in view.pods.values():
            for busy in pod.busy:
                heat[busy.name] = heat.get(busy.name, 0.0) + busy.rate_per_s
        tried = {trial.name for trial in self._trials}
        served = [
            name
            for name, copies in view.copies.items()
            if name not in tried and any(copy.servable and copy.pod != self._own_pod for copy in copies)
        ]
        served.sort(key=lambda name: (-heat.get(name, 0.0), name))
        return list(islice(filter(self._is_for_here, served), CANDIDATES_MAX))

    def _is_for_here(self, name: ModelName) -> bool:
        """Whether a failure would be this pod's fault: the model fits, no label is lacking, and no pod died of it.

        A framework that is missing is its fault: a release may have lost it.
        """
        record, view = self._registry.model(*name), self._membership.view
        own = view.pods.get(self._own_pod)
        if record is None or own is None or name in view.suspicions:
            return False
        facts = self._facts_of(record)
        return facts.labels_required <= own.labels and facts.size_bytes <= own.capacity_bytes - own.pinned_bytes

    async def _try(self, name: ModelName, ends_s: float) -> None:
        record = self._registry.model(*name)
        if record is None:
            return
        loaded, permanent, message = True, False, ""
        try:
            resident = await self._loading.wait_servable(wanted(record), ends_s)
        except Refused as refused:
            kind = refused.refusal.kind
            if kind not in _FAILURES:
                return  # no room, or no time: that says nothing of what this pod is able to do
            loaded, permanent, message = False, kind is RefusalKind.LOAD_FAILED_PERMANENT, str(refused)
        else:
            resident.let_go()
        elsewhere = any(copy.pod != self._own_pod for copy in self._membership.view.holders(name, record.generation))
        self._trials.append(TrialLoad(name, loaded, elsewhere, permanent, message))
        await asyncio.sleep(0)
