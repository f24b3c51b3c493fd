"""`Client`: everything a pool offers, from blocking code. `mesh.client.async_client` is the same on asyncio.

A call has one deadline for all its attempts. Answers of the management interface are its own messages
(mesh/wire/protos/hexcomb.proto); tensors are NumPy arrays. Refusals are raised as `mesh.client.errors`.

Imports beside tritonclient in one process.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

from numpy.typing import ArrayLike

from mesh.client import operations
from mesh.client.connection import BlockingConnection, ClientTls
from mesh.client.errors import HexcombError, ServerFailed
from mesh.client.operations import AliasFields, Operation, SpecFields
from mesh.client.retries import RetryPolicy, wait_before_retry_s
from mesh.transport.base import Metadata, StatusCode
from mesh.wire.generated import hexcomb_pb2, inference_pb2, mmesh_pb2
from mesh.wire.messages import TENANT_METADATA
from mesh.wire.tensors import InferResult

Answer = TypeVar("Answer")
Progress = Callable[[int], None]
"""Called after each message of a bulk call with the number of entries that it answered."""

DEFAULT_ENDPOINT = "127.0.0.1:8033"
DEFAULT_TIMEOUT_S = 60.0
"""Long enough for a cold model of ordinary size; every method takes another."""
LEAST_TIMEOUT_S = 0.001


class Client:
    """One pool, as one tenant. Thread-safe. Use it as a context manager, or `close` it."""

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        tenant: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        tls: ClientTls | None = None,
        metadata: Metadata = (),
    ) -> None:
        self._connection = BlockingConnection(endpoint, tls)
        self._metadata = metadata_of(tenant, metadata)
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, operation: Operation[Answer], timeout_s: float | None = None) -> Answer:
        """Any operation of `mesh.client.operations`."""
        deadline_s = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        attempts = 0
        while True:
            attempts += 1
            try:
                remaining_s = max(deadline_s - time.monotonic(), LEAST_TIMEOUT_S)
                body = self._connection.call(operation.path, operation.body, self._metadata, remaining_s)
            except HexcombError as error:
                remaining_s = deadline_s - time.monotonic()
                wait_s = wait_before_retry_s(error, attempts, remaining_s, self._retry, random.random())
                if wait_s is None:
                    raise
                time.sleep(wait_s)
            else:
                return decoded(operation, body)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> InferResult:
        """Run a model, or what an alias points at. No `outputs`: those that the model gives by default."""
        return self.call(operations.infer(model, inputs, outputs, version, request_id), timeout_s)

    def server_live(self, timeout_s: float | None = None) -> bool:
        return self.call(operations.server_live(), timeout_s)

    def server_ready(self, timeout_s: float | None = None) -> bool:
        return self.call(operations.server_ready(), timeout_s)

    def server_metadata(self, timeout_s: float | None = None) -> inference_pb2.ServerMetadataResponse:
        return self.call(operations.server_metadata(), timeout_s)

    def model_ready(self, model: str, version: str = "", timeout_s: float | None = None) -> bool:
        return self.call(operations.model_ready(model, version), timeout_s)

    def model_metadata(
        self, model: str, version: str = "", timeout_s: float | None = None
    ) -> inference_pb2.ModelMetadataResponse:
        return self.call(operations.model_metadata(model, version), timeout_s)

    def register(self, model_id: str, **spec: Unpack[SpecFields]) -> hexcomb_pb2.RegistrationResult:
        """Register one model; of an equal spec a second time is no error. Raises AlreadyExists, ..."""
        return self.call(operations.register(operations.registration(model_id, **spec)))

    def register_many(
        self, entries: Iterable[hexcomb_pb2.Registration], on_progress: Progress | None = None
    ) -> list[hexcomb_pb2.RegistrationResult]:
        """Register any number; one result per entry, in order, refusals among them (`status_code`, `message`)."""
        results: list[hexcomb_pb2.RegistrationResult] = []
        for operation in operations.register_many(entries):
            answered = self.call(operation)
            results.extend(answered)
            if on_progress is not None:
                on_progress(len(answered))
        return results

    def unregister(self, model_id: str) -> bool:
        """Whether there was such a model."""
        return self.call(operations.unregister(model_id))

    def unregister_many(
        self, ids: Iterable[str], on_progress: Progress | None = None
    ) -> list[hexcomb_pb2.UnregistrationResult]:
        results: list[hexcomb_pb2.UnregistrationResult] = []
        for operation in operations.unregister_many(ids):
            answered = self.call(operation)
            results.extend(answered)
            if on_progress is not None:
                on_progress(len(answered))
        return results

    def list_models(
        self, id_prefix: str = "", labels: Mapping[str, str] | None = None, page_size: int = 0
    ) -> Iterator[hexcomb_pb2.ModelDescription]:
        """All models, page by page."""
        page_token = ""
        while True:
            page = self.call(operations.list_page(page_token, id_prefix, labels, page_size))
            yield from page.models
            page_token = page.next_page_token
            if not page_token:
                return

    def describe(self, model: str) -> hexcomb_pb2.ModelDescription:
        return self.call(operations.describe(model))

    def pod_status(self, pod: str = "") -> list[hexcomb_pb2.PodDescription]:
        return list(self.call(operations.pod_status(pod)).pods)

    def set_pinned(self, model_id: str, pinned: bool) -> hexcomb_pb2.ModelDescription:
        return self.call(operations.set_pinned(model_id, pinned))

    def ensure_loaded(
        self, model_id: str, wait: bool = True, timeout_s: float | None = None
    ) -> mmesh_pb2.ModelStatusInfo:
        return self.call(operations.ensure_loaded(model_id, wait), timeout_s)

    def model_status(self, model_id: str) -> mmesh_pb2.ModelStatusInfo:
        return self.call(operations.model_status(model_id))

    def set_alias(self, alias: str, target: str, **fields: Unpack[AliasFields]) -> mmesh_pb2.VModelStatusInfo:
        return self.call(operations.set_alias(alias, target, fields))

    def alias_status(self, alias: str, owner: str = "") -> mmesh_pb2.VModelStatusInfo:
        return self.call(operations.alias_status(alias, owner))

    def delete_alias(self, alias: str, owner: str = "") -> None:
        self.call(operations.delete_alias(alias, owner))


def metadata_of(tenant: str | None, metadata: Metadata) -> Metadata:
    """What goes with every call."""
    return metadata if tenant is None else (*metadata, (TENANT_METADATA, tenant))


def decoded(operation: Operation[Answer], body: bytes) -> Answer:
    """Read an answer; one that cannot be read is the server's fault."""
    try:
        return operation.decode(body)
    except HexcombError:
        raise
    except Exception as error:
        raise ServerFailed(f"cannot read the server's answer to {operation.path}: {error}", StatusCode.UNKNOWN) from (
            error
        )
