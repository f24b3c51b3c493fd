"""What happened to a service, as events of the cluster: `kubectl describe isvc` shows them.

An event is a courtesy: one that cannot be written is logged, and nothing waits for it.
"""

from __future__ import annotations

import logging
import secrets

from controller.cluster_api import EVENTS, ClusterApi, Json, moment
from controller.cluster_errors import ClusterError
from controller.names import API_VERSION, FIELD_MANAGER, KIND
from controller.status import Event

log = logging.getLogger("hexcomb.controller")

MESSAGE_LENGTH_MAX = 1000
"""The API server takes 1,024."""


class Recorder:
    """Writes events."""

    def __init__(self, api: ClusterApi, identity: str) -> None:
        """`identity`: of this process."""
        self._api = api
        self._identity = identity

    async def record(self, service: Json, event: Event) -> None:
        """Raises nothing."""
        metadata = service["metadata"]
        now = moment()
        manifest = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{secrets.token_hex(8)}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:MESSAGE_LENGTH_MAX],
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._identity,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.create(EVENTS, metadata["namespace"], manifest)
        except ClusterError as error:
            log.warning("%s/%s: event %s: %s", metadata["namespace"], metadata["name"], event.reason, error)
