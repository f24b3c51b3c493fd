"""Pipelines in JSON: the handler that `:predict` asks first, and that gRPC clients may ask, too.

A name that stands for a model is answered with `is_pipeline: false`, and nothing has happened: V1 then translates the
body for that model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from mesh.endpoint.access import Access
from mesh.endpoint.v2 import COLD_TRAILER, V2Endpoint, asked_name, from_draining
from mesh.pipelines.languages import TRANSLATED_HERE_BYTES_MAX
from mesh.pipelines.requests import PipelineRequests
from mesh.transport.base import Call, Reply, ReplyWithTrailers, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2
from mesh.wire.json_tensors import parse_object, to_json

T = TypeVar("T")


class PipelinesEndpoint:
    """Handlers of `hexcomb.v1.Pipelines`."""

    def __init__(self, v2: V2Endpoint, pipelines: PipelineRequests, access: Access, unready: Callable[[], str]) -> None:
        self._v2 = v2
        self._pipelines = pipelines
        self._access = access
        self._unready = unready

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {messages.PREDICT.path: self.predict}

    async def predict(self, call: Call) -> Reply:
        """A body's way through a pipeline."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.PREDICT, call.body)
        record, _ = await self._v2.resolve(call, tenant, asked_name(call, request.name), "")
        if record.spec.has_copies:
            return hexcomb_pb2.PredictResponse().SerializeToString()
        size_bytes = len(request.body)
        body = await _translated(lambda: parse_object(request.body), size_bytes > TRANSLATED_HERE_BYTES_MAX)
        answer = await self._pipelines.predict(call, tenant, record, body, size_bytes)
        text = await _translated(lambda: to_json(answer.body), answer.large)
        reply = hexcomb_pb2.PredictResponse(is_pipeline=True, body=text).SerializeToString()
        whole = ReplyWithTrailers(reply, COLD_TRAILER if answer.cold else ())
        return from_draining(whole) if self._unready() else whole


async def _translated(translate: Callable[[], T], is_large: bool) -> T:
    """What it gives; other calls do not wait for a large translation."""
    return await asyncio.to_thread(translate) if is_large else translate()
