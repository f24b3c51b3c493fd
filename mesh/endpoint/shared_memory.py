"""Triton's shared memory extensions: inputs and outputs that lie in memory which the client shares with this pod.

The pod that is called reads the inputs into an ordinary request and writes the outputs of its answer back; in between,
the request is like any other, and may be answered by another pod. So regions are registered with the pod that is
called, and a client of a pool calls that one.

Only callers on this machine may register, read or write: the object is opened by this process, with its rights. What
requests have read, and are not done with, is bounded by a sum of its own, as large as that of messages
(`bytes_in_flight_max`).

Memory of GPUs is refused: this pod does not open CUDA's handles.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from mesh.endpoint.access import Access, is_on_this_machine
from mesh.shared_memory import NoRegion, Region, RegionError, RegionExists, Regions
from mesh.transport.base import Call, Reply, ReplyWithTrailers, StatusCode, TransportError, UnaryHandler
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2
from mesh.wire.peek import RAW_INPUTS, RAW_OUTPUTS, peek
from mesh.wire.tensors import Buffer, parsed_beside_raw, with_raw

SYSTEM_EXTENSION = "system_shared_memory"
REGION, SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
_MARK = REGION.encode()


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of a region."""

    region: Region
    offset: int
    size_bytes: int


Places = Mapping[str, _Place]
"""Of outputs, by name."""


class _BytesRead:
    """What all requests have read and are not done with; on any thread."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, size_bytes: int) -> None:
        """Raises TransportError where there would be too many."""
        with self._lock:
            if self._taken + size_bytes > self._bytes_max:
                raise TransportError(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"requests of the moment have read {self._taken} bytes of shared memory, and this one names "
                    f"{size_bytes}; {self._bytes_max} are allowed at a time (--bytes-in-flight-max): send it again "
                    "later",
                    1.0,
                )
            self._taken += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """The request is done with them."""
        with self._lock:
            self._taken -= size_bytes


class SharedMemoryEndpoint:
    """Handlers of the extensions, and what stands before `ModelInfer`."""

    def __init__(self, regions: Regions, access: Access, read_bytes_max: int) -> None:
        """`read_bytes_max`: by all requests of a moment together."""
        self._regions = regions
        self._access = access
        self._read_bytes_max = read_bytes_max
        self._bytes_read = _BytesRead(read_bytes_max)

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.SYSTEM_SHM_STATUS.path: self.status,
            messages.SYSTEM_SHM_REGISTER.path: self.register,
            messages.SYSTEM_SHM_UNREGISTER.path: self.unregister,
            messages.CUDA_SHM_STATUS.path: self.cuda_status,
            messages.CUDA_SHM_REGISTER.path: self.cuda_register,
            messages.CUDA_SHM_UNREGISTER.path: self.cuda_unregister,
        }

    async def status(self, call: Call) -> Reply:
        """Regions of the tenant."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.SYSTEM_SHM_STATUS, call.body)
        response = inference_pb2.SystemSharedMemoryStatusResponse()
        try:
            found = self._regions.status(tenant, request.name)
        except RegionError as error:
            raise _told(error) from error
        for region in found:
            described = response.regions[region.name]
            described.name, described.key = region.name, region.key
            described.offset, described.byte_size = region.offset, region.size_bytes
        return response.SerializeToString()

    async def register(self, call: Call) -> Reply:
        """Open an object of this machine."""
        tenant = self._access.caller(call).tenant
        _check_here(call)
        request = messages.parse(messages.SYSTEM_SHM_REGISTER, call.body)
        try:
            self._regions.register(tenant, request.name, request.key, request.offset, request.byte_size)
        except RegionError as error:
            raise _told(error) from error
        return inference_pb2.SystemSharedMemoryRegisterResponse().SerializeToString()

    async def unregister(self, call: Call) -> Reply:
        """Let go of a region, or of all."""
        tenant = self._access.caller(call).tenant
        self._regions.unregister(tenant, messages.parse(messages.SYSTEM_SHM_UNREGISTER, call.body).name)
        return inference_pb2.SystemSharedMemoryUnregisterResponse().SerializeToString()

    async def cuda_status(self, call: Call) -> Reply:
        """None are here."""
        self._access.caller(call)
        name = messages.parse(messages.CUDA_SHM_STATUS, call.body).name
        if name:
            raise TransportError(StatusCode.NOT_FOUND, f"CUDA shared memory region {name[:200]!r} is not registered")
        return inference_pb2.CudaSharedMemoryStatusResponse().SerializeToString()

    async def cuda_register(self, call: Call) -> Reply:
        """Refused."""
        self._access.caller(call)
        messages.parse(messages.CUDA_SHM_REGISTER, call.body)
        raise TransportError(
            StatusCode.UNIMPLEMENTED,
            "CUDA shared memory is not supported by this pod; use system shared memory, or send the tensors",
        )

    async def cuda_unregister(self, call: Call) -> Reply:
        """Nothing is there to let go of."""
        self._access.caller(call)
        messages.parse(messages.CUDA_SHM_UNREGISTER, call.body)
        return inference_pb2.CudaSharedMemoryUnregisterResponse().SerializeToString()

    def names_regions(self, body: bytes | memoryview) -> bool:
        """Whether a request may name regions that are registered here."""
        return bool(self._regions) and _MARK in bytes(body)

    # Requests -----------------------------------------------------------------------------------------------

    def by_reference(self, handler: UnaryHandler) -> UnaryHandler:
        """The handler of ModelInfer, for requests that name regions as well. A look, where no region is registered."""

        async def infer(call: Call) -> Reply:
            if not self.names_regions(call.body) or self._access.is_peer(call):
                return await handler(call)  # a pod's caller may be anywhere: its regions are that pod's
            async with self.plain(call, self._access.caller(call).tenant) as (plain, places):
                reply = await handler(plain)
                if isinstance(reply, ReplyWithTrailers):
                    return ReplyWithTrailers(await self.delivered(reply.body, places), reply.trailers)
                return await self.delivered(reply, places)

        return infer

    @asynccontextmanager
    async def plain(self, call: Call, tenant: str) -> AsyncGenerator[tuple[Call, Places], None]:
        """The call with a request that names no region, and where its outputs go. What was read counts until the end
        of the block."""
        if not self._regions or _MARK not in bytes(call.body):
            yield call, {}
            return
        reading = asyncio.ensure_future(asyncio.to_thread(self._read, tenant, call))
        try:
            body, places, _ = await asyncio.shield(reading)
            yield replace(call, body=body), places
        except RegionError as error:
            raise _told(error) from error
        finally:
            reading.add_done_callback(self._read_and_done)  # a thread reads on when its caller has left

    def _read_and_done(self, reading: asyncio.Future[tuple[bytes, Places, int]]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self._bytes_read.give_back(reading.result()[2])

    async def delivered(self, answer: bytes, places: Places) -> bytes:
        """The answer without the outputs that go into regions, which are there then."""
        if not places:
            return answer
        try:
            return await asyncio.to_thread(_delivered, answer, places)
        except RegionError as error:
            raise _told(error) from error

    def _read(self, tenant: str, call: Call) -> tuple[bytes, Places, int]:
        """The request with its tensors in it, where its outputs go, by name, and how many bytes were read, which are
        taken."""
        envelope = peek(call.body, RAW_INPUTS)
        request = parsed_beside_raw(inference_pb2.ModelInferRequest, call.body, envelope)
        view = memoryview(call.body)
        sent = iter([view[begin:end] for begin, end in envelope.raw])
        inputs = [(tensor.name, self._place(tenant, call, tensor.parameters)) for tensor in request.inputs]
        places = {
            output.name: place
            for output in request.outputs
            if (place := self._place(tenant, call, output.parameters)) is not None
        }
        named_bytes = sum(place.size_bytes for _, place in inputs if place is not None)
        if named_bytes > self._read_bytes_max:
            raise InvalidMessage(f"the inputs in shared memory have more than {self._read_bytes_max} bytes")
        self._bytes_read.take(named_bytes)
        try:
            raw: list[Buffer] = []
            for name, place in inputs:
                contents = next(sent, None) if place is None else place.region.read(place.offset, place.size_bytes)
                if contents is None:
                    raise InvalidMessage(
                        f"input {name!r} is neither in shared memory nor among the raw contents; send it raw"
                    )
                raw.append(contents)
            raw.extend(sent)  # one too many is the decoder's to refuse
            return with_raw(request.SerializeToString(), RAW_INPUTS, raw), places, named_bytes
        except BaseException:
            self._bytes_read.give_back(named_bytes)
            raise

    def _place(self, tenant: str, call: Call, parameters: Any) -> _Place | None:
        """What a tensor's parameters say; they are taken away."""
        if REGION not in parameters:
            return None
        _check_here(call)
        region = self._regions.find(tenant, parameters.pop(REGION).string_param)
        offset = _whole(parameters.pop(OFFSET)) if OFFSET in parameters else 0
        if SIZE not in parameters:
            raise InvalidMessage(f"a tensor in shared memory needs the parameter {SIZE}")
        return _Place(region, offset, _whole(parameters.pop(SIZE)))


def _delivered(body: bytes, places: Places) -> bytes:
    envelope = peek(body, RAW_OUTPUTS)
    response = parsed_beside_raw(inference_pb2.ModelInferResponse, body, envelope)
    view = memoryview(body)
    raw: list[Buffer] = []
    for output, (begin, end) in zip(response.outputs, envelope.raw, strict=True):
        place = places.get(output.name)
        if place is None:
            raw.append(view[begin:end])
            continue
        if end - begin > place.size_bytes:
            raise RegionError(
                f"output {output.name!r} takes {end - begin} bytes, and {place.size_bytes} were given to it in shared "
                f"memory region {place.region.name!r}"
            )
        place.region.write(place.offset, view[begin:end])
        raw.append(b"")
        output.parameters[REGION].string_param = place.region.name
        output.parameters[SIZE].int64_param = end - begin
        if place.offset:
            output.parameters[OFFSET].int64_param = place.offset
    return with_raw(response.SerializeToString(), RAW_OUTPUTS, raw)


def _whole(parameter: inference_pb2.InferParameter) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidMessage(f"{SIZE} and {OFFSET} must be whole numbers")
    found = int(getattr(parameter, kind))
    if found < 0:
        raise InvalidMessage(f"{SIZE} and {OFFSET} must be 0 and more, not {found}")
    return found


def _check_here(call: Call) -> None:
    """Raises TransportError for callers on another machine."""
    if not is_on_this_machine(call.peer):
        raise TransportError(
            StatusCode.PERMISSION_DENIED,
            "shared memory is for callers on the pod's own machine, by a loopback address or a unix socket; send the "
            "tensors in the message",
        )


def _told(error: RegionError) -> TransportError:
    if isinstance(error, NoRegion):
        return TransportError(StatusCode.NOT_FOUND, str(error))
    if isinstance(error, RegionExists):
        return TransportError(StatusCode.ALREADY_EXISTS, str(error))
    return TransportError(StatusCode.INVALID_ARGUMENT, str(error))
