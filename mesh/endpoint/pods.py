"""What there is to see of the pods, over gRPC, and draining one.

Whoever asks one pod sees all. The pod that is asked asks the others, each for itself; those that give no answer are
described from what they published last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mesh.asking import Asking, NoAnswer
from mesh.endpoint.access import Access
from mesh.endpoint.descriptions import described_pods
from mesh.overview import Overview
from mesh.pod import PodReport, reports_from_records
from mesh.transport.base import Call, LineBroken, Reply, StatusCode, TransportError, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2

PODS_NAMED_MAX = 20


class PodsEndpoint:
    """Handlers of the pods' methods of `hexcomb.v1.Management`."""

    def __init__(
        self,
        overview: Overview,
        asking: Asking,
        access: Access,
        report: Callable[[], PodReport],
        *,
        is_draining: Callable[[], bool],
        request_drain: Callable[[], None],
    ) -> None:
        """`request_drain` begins to drain and stop this pod."""
        self._overview = overview
        self._asking = asking
        self._access = access
        self._report = report
        self._is_draining = is_draining
        self._request_drain = request_drain

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.POD_STATUS.path: self.pod_status,
            messages.DRAIN_POD.path: self.drain_pod,
        }

    async def pod_status(self, call: Call) -> Reply:
        """One pod, or all of them, this one first."""
        tenant = self._access.caller(call).tenant
        wanted = messages.parse(messages.POD_STATUS, call.body).pod
        own = self._overview.own_pod
        if wanted:
            self._check_known(wanted)
        others = sorted(pod for pod in self._overview.view.pods if pod != own and wanted in ("", pod))
        found: list[hexcomb_pb2.PodDescription] = []
        if wanted in ("", own):
            report = self._report()
            found += described_pods([replace(report, requests_in_flight=report.requests_in_flight - 1)])  # but this one
        found += await self._others(others, tenant)
        return hexcomb_pb2.PodStatusResponse(pods=found).SerializeToString()

    async def _others(self, pods: list[str], tenant: str) -> list[hexcomb_pb2.PodDescription]:
        requests = {pod: hexcomb_pb2.PodStatusRequest(pod=pod) for pod in pods}
        answers = await self._asking.ask_each(requests, messages.POD_STATUS, tenant)
        silent = {pod: answer.why for pod, answer in answers.items() if isinstance(answer, NoAnswer)}
        view = self._overview.view
        records = [view.pods[pod] for pod in silent if pod in view.pods]
        last_known = reports_from_records(records, view, lambda pod: silent[pod], self._overview.leader)
        found: list[hexcomb_pb2.PodDescription] = []
        for pod, answer in answers.items():
            if not isinstance(answer, NoAnswer):
                for description in answer.pods:
                    description.why_unreachable = self._overview.why_avoided(pod)
                    found.append(description)
        found += described_pods(last_known)
        return sorted(found, key=lambda description: description.pod)

    async def drain_pod(self, call: Call) -> Reply:
        """Have a pod hand over and stop; answered at once."""
        tenant = self._access.caller(call).tenant
        wanted = messages.parse(messages.DRAIN_POD, call.body).pod or self._overview.own_pod
        self._check_known(wanted)
        if wanted == self._overview.own_pod:
            response = hexcomb_pb2.DrainPodResponse(was_draining=self._is_draining())
            self._request_drain()
            return response.SerializeToString()
        why = self._overview.why_unreachable(wanted)
        if why:
            raise TransportError(StatusCode.UNAVAILABLE, f"pod {wanted!r} cannot be told to drain: {why}", 1.0)
        request = hexcomb_pb2.DrainPodRequest(pod=wanted)
        try:
            return (await self._asking.ask(wanted, messages.DRAIN_POD, request, tenant)).SerializeToString()
        except (LineBroken, TimeoutError) as error:
            raise TransportError(
                StatusCode.UNAVAILABLE, f"pod {wanted!r} gave no answer; ask again: {error}", 1.0
            ) from error

    def _check_known(self, pod: str) -> None:
        pods = self._overview.view.pods
        if pod == self._overview.own_pod or pod in pods:
            return
        known = sorted({*pods, self._overview.own_pod})
        named = ", ".join(repr(name) for name in known[:PODS_NAMED_MAX])
        more = f" and {len(known) - PODS_NAMED_MAX} more" if len(known) > PODS_NAMED_MAX else ""
        raise TransportError(
            StatusCode.NOT_FOUND, f"pod {pod[:100]!r} is not known here; the pods of this pool are {named}{more}"
        )
