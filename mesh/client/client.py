"""`Client`: everything a pool offers, from blocking code. `mesh.client.async_client` is the same on asyncio.

It is given one endpoint or several; of several, each call goes to the next one that is well, and from one that does
not answer to another at once. A call has one deadline for all its attempts.

Answers of the management interface are its own messages (mesh/wire/protos/hexcomb.proto); tensors are NumPy arrays.
Refusals are raised as `mesh.client.errors`.

Imports beside tritonclient in one process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from numpy.typing import ArrayLike

from mesh.client import operations
from mesh.client.attempts import LEAST_TIMEOUT_S, Conversation, Pause, Received, Send
from mesh.client.bulk import Progress, register_many, unregister_many
from mesh.client.calls import CONNECTIONS_MAX, DEFAULT_ENDPOINT, DEFAULT_TIMEOUT_S, Calls, decoded
from mesh.client.connection import BlockingConnection, ClientTls
from mesh.client.endpoints import parse_endpoints
from mesh.client.errors import HexcombError
from mesh.client.frames import Signatures, infer_frame
from mesh.client.operations import CHUNK_ENTRIES_MAX, AliasFields, Operation, Parameters, PutAliasFields, SpecFields
from mesh.client.procedures import Procedure, step, wait_ready
from mesh.client.retries import RetryPolicy
from mesh.transport.base import Metadata
from mesh.wire.generated import hexcomb_pb2, inference_pb2, mmesh_pb2
from mesh.wire.tensors import InferResult

if TYPE_CHECKING:
    import pandas as pd

Answer = TypeVar("Answer")


class Client:
    """One pool, as one tenant. Thread-safe. Use it as a context manager, or `close` it.

    It connects at its first call. gRPC does not survive `fork`: a process that forks makes its client afterwards.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str] = DEFAULT_ENDPOINT,
        *,
        tenant: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        tls: ClientTls | None = None,
        metadata: Metadata = (),
        follow_owners: bool = True,
    ) -> None:
        """`endpoint`: HOST:PORT, or several: a list, or one text with commas between them. `follow_owners`: ask for a
        model at the pod that had it last time, where that pod can be reached. Raises ValueError."""
        addresses = parse_endpoints(endpoint)
        self._tls = tls
        self._connecting = threading.Lock()
        self._connections: dict[str, BlockingConnection] = {}
        self._closed = False
        self._signatures = Signatures()
        self._calls = Calls(addresses, tenant, timeout_s, retry, metadata, self._ready if follow_owners else None)

    def _connection(self, address: str) -> BlockingConnection:
        connection = self._connections.get(address)
        if connection is None or self._closed:
            with self._connecting:
                if self._closed:
                    raise RuntimeError("this client is closed")
                connection = self._connections.get(address)
                if connection is None:
                    connection = self._connections[address] = BlockingConnection(address, self._tls)
        return connection

    def _ready(self, address: str) -> bool:
        """Whether a connection to a pod that an answer named stands; else one is made."""
        if address not in self._connections and len(self._connections) >= CONNECTIONS_MAX:
            return False
        return self._connection(address).is_ready()

    def close(self) -> None:
        """Calls that are under way end with an error."""
        with self._connecting:
            self._closed = True
        for connection in self._connections.values():
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, operation: Operation[Answer], timeout_s: float | None = None) -> Answer:
        """Any operation of `mesh.client.operations`."""

        def attempt(step: Send) -> Received:
            connection = self._connection(step.address)
            return connection.call(operation.path, operation.body, step.metadata, step.timeout_s)

        return decoded(operation, self._converse(self._calls.begin(timeout_s, operation), attempt))

    def _converse(self, steps: Conversation, attempt: Callable[[Send], Received]) -> bytes:
        outcome: Received | HexcombError | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                body: bytes = done.value
                return body
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                outcome = None
                continue
            try:
                outcome = attempt(step)
            except HexcombError as error:
                outcome = error

    def _carry_out(self, procedure: Procedure[Answer], deadline_s: float | None) -> Answer:
        """`deadline_s`: of all its calls, on the monotonic clock; None: each has the client's own time."""
        outcome: Any = None
        while True:
            try:
                next_step = step(procedure, outcome)
            except StopIteration as done:
                answer: Answer = done.value
                return answer
            if isinstance(next_step, Pause):
                time.sleep(next_step.seconds)
                outcome = None
                continue
            try:
                outcome = self.call(
                    next_step, None if deadline_s is None else max(LEAST_TIMEOUT_S, deadline_s - time.monotonic())
                )
            except HexcombError as error:
                outcome = error

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        request_id: str = "",
        parameters: Parameters | None = None,
        timeout_s: float | None = None,
    ) -> InferResult:
        """Run a model, or what an alias points at. No `outputs`: those that the model gives by default; tabular models
        give `predict_proba` and `explanation` when asked. Arrays of the result are read-only views of the answer.

        Raises HexcombError: see `mesh.client.errors`.
        """
        operation = operations.infer(model, inputs, outputs, version, request_id, parameters)
        return self.call(operation, timeout_s)

    def infer_frame(
        self,
        model: str,
        frame: pd.DataFrame,
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        parameters: Parameters | None = None,
        rows_per_call: int | None = None,
        timeout_s: float | None = None,
    ) -> pd.DataFrame:
        """Run a model on the rows of a pandas DataFrame, which becomes what the model takes: `mesh.client.frames` has
        the rules. The answer has the frame's index. The first time for a model, its metadata is asked for, too.
        `rows_per_call`: ask for so many rows at a time, where all of them are too many for a message.

        Raises HexcombError; InvalidRequest for a frame that the model does not take.
        """
        asked = infer_frame(self._signatures, model, frame, outputs, version, parameters, rows_per_call)
        return self._carry_out(asked, self._calls.deadline_s(timeout_s))

    def infer_stream(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        request_id: str = "",
        parameters: Parameters | None = None,
        timeout_s: float | None = None,
    ) -> Generator[InferResult, None, None]:
        """Run a model that gives any number of answers, and yield each as it comes; one answer, if it is not of that
        kind. `timeout_s`: until the last one. To `close` the generator ends the run.

        What may pass is tried again until the first answer has come; after that it is raised.
        """
        return self._streamed(
            operations.infer_stream(model, inputs, outputs, version, request_id, parameters), timeout_s
        )

    def _streamed(
        self, operation: Operation[InferResult], timeout_s: float | None
    ) -> Generator[InferResult, None, None]:
        answers: Generator[bytes, None, None] | None = None
        first: InferResult | None = None

        def attempt(step: Send) -> Received:
            nonlocal answers, first
            connection = self._connection(step.address)
            answers = connection.stream(operation.path, operation.body, step.metadata, step.timeout_s)
            try:
                body = next(answers, None)
                first = None if body is None else decoded(operation, body)
            except HexcombError:
                answers.close()
                raise
            return Received(b"")

        try:
            self._converse(self._calls.begin(timeout_s, operation), attempt)
            if first is None or answers is None:
                return
            yield first
            for body in answers:
                yield decoded(operation, body)
        finally:
            if answers is not None:
                answers.close()

    def wait_ready(self, model_id: str = "", timeout_s: float | None = None) -> None:
        """Wait until a pod is there and ready and, if named, the model is loaded.

        Raises DeadlineExceeded; of a model that cannot be loaded what its load ended with.
        """
        deadline_s = self._calls.deadline_s(timeout_s)
        self._carry_out(wait_ready(model_id, deadline_s, time.monotonic), deadline_s)

    def server_live(self, timeout_s: float | None = None) -> bool:
        """Whether a pod answers."""
        return self.call(operations.server_live(), timeout_s)

    def server_ready(self, timeout_s: float | None = None) -> bool:
        """Whether a pod takes requests: not while it drains."""
        return self.call(operations.server_ready(), timeout_s)

    def server_metadata(self, timeout_s: float | None = None) -> inference_pb2.ServerMetadataResponse:
        """Name, version, and the extensions that are served."""
        return self.call(operations.server_metadata(), timeout_s)

    def model_ready(self, model: str, version: str = "", timeout_s: float | None = None) -> bool:
        """Whether a request has a chance: registered, not failed for good. `wait_ready` waits until it is loaded."""
        return self.call(operations.model_ready(model, version), timeout_s)

    def model_metadata(
        self, model: str, version: str = "", timeout_s: float | None = None
    ) -> inference_pb2.ModelMetadataResponse:
        """Platform, inputs and outputs; the first time a model is asked for them it is loaded."""
        return self.call(operations.model_metadata(model, version), timeout_s)

    def statistics(
        self, model: str = "", version: str = "", timeout_s: float | None = None
    ) -> inference_pb2.ModelStatisticsResponse:
        """Requests, and what they took, as Triton counts them, of the whole pool; no `model`: of all."""
        return self.call(operations.statistics(model, version), timeout_s)

    def register(self, model_id: str, **spec: Unpack[SpecFields]) -> hexcomb_pb2.RegistrationResult:
        """Register one model; of an equal spec a second time is no error. Raises AlreadyExists, ..."""
        return self.call(operations.register(operations.registration(model_id, **spec)))

    def register_pipeline(
        self, name: str, graph: Mapping[str, Any], *, if_generation: int | None = None
    ) -> hexcomb_pb2.RegistrationResult:
        """Register a graph of models as one name that answers: KServe's InferenceGraph as `json` or `yaml` read it, its
        `spec`, or {"nodes": ...}. `unregister` and `describe` take it as they do models. Raises InvalidRequest, ..."""
        return self.call(operations.register(operations.pipeline(name, graph, if_generation)))

    def register_many(
        self,
        entries: Iterable[hexcomb_pb2.Registration],
        on_progress: Progress | None = None,
        *,
        entries_per_call: int = CHUNK_ENTRIES_MAX,
    ) -> list[hexcomb_pb2.RegistrationResult]:
        """Register any number; one result per entry, in order, refusals among them (`status_code`, `message`). Each
        call has the client's own time; one without an answer ends it, and results say which entries that left. To
        register the same again changes nothing. `registrations` reads manifests, directories and DataFrames.

        Raises HexcombError when the first call has no answer: then nothing is known to be registered.
        """
        return self._carry_out(register_many(entries, on_progress, entries_per_call), None)

    def unregister(self, model_id: str) -> bool:
        """Whether there was such a model."""
        return self.call(operations.unregister(model_id))

    def unregister_many(
        self, ids: Iterable[str], on_progress: Progress | None = None
    ) -> list[hexcomb_pb2.UnregistrationResult]:
        """As `register_many`; `existed` says whether there was such a model."""
        return self._carry_out(unregister_many(ids, on_progress), None)

    def list_models(
        self, id_prefix: str = "", labels: Mapping[str, str] | None = None, page_size: int = 0, format: str = ""
    ) -> Iterator[hexcomb_pb2.ModelDescription]:
        """All models, page by page; `format`: only those that are registered with it, such as `pipeline`."""
        page_token = ""
        while True:
            page = self.call(operations.list_page(page_token, id_prefix, labels, page_size, format))
            yield from page.models
            page_token = page.next_page_token
            if not page_token:
                return

    def describe(self, model: str) -> hexcomb_pb2.ModelDescription:
        """All there is to know of a model, or of what an alias points at. Raises NotFound."""
        return self.call(operations.describe(model))

    def pod_status(self, pod: str = "") -> list[hexcomb_pb2.PodDescription]:
        """Every pod of the pool, or the one of that name: capacity and use, requests, queue, and what is wrong."""
        return list(self.call(operations.pod_status(pod)).pods)

    def set_pinned(self, model_id: str, pinned: bool) -> hexcomb_pb2.ModelDescription:
        """Keep a model loaded always, or let it be evicted again. Raises NotFound."""
        return self.call(operations.set_pinned(model_id, pinned))

    def ensure_loaded(
        self, model_id: str, wait: bool = True, timeout_s: float | None = None
    ) -> mmesh_pb2.ModelStatusInfo:
        """Have a model loaded; with `wait`, answer when that is over; `status` says how it ended. Raises NotFound."""
        return self.call(operations.ensure_loaded(model_id, wait), timeout_s)

    def unload(self, model: str, timeout_s: float | None = None) -> None:
        """Have every copy leave; the next request loads it again."""
        self.call(operations.unload(model), timeout_s)

    def model_status(self, model_id: str) -> mmesh_pb2.ModelStatusInfo:
        """As ModelMesh says it: `NOT_FOUND`, `NOT_LOADED`, `LOADING`, `LOADED` or `LOADING_FAILED`, and copies."""
        return self.call(operations.model_status(model_id))

    def set_alias(self, alias: str, target: str, **fields: Unpack[AliasFields]) -> mmesh_pb2.VModelStatusInfo:
        """As ModelMesh's `setVModel`: an alias moves at once where nothing serves yet, else when the target does."""
        return self.call(operations.set_alias(alias, target, fields))

    def alias_status(self, alias: str, owner: str = "") -> mmesh_pb2.VModelStatusInfo:
        """Where an alias points, and whether it is on its way elsewhere. `owner`: must be its owner, unless empty."""
        return self.call(operations.alias_status(alias, owner))

    def delete_alias(self, alias: str, owner: str = "") -> None:
        """One that does not exist is no error. Raises HexcombError for another owner than its own."""
        self.call(operations.delete_alias(alias, owner))

    def put_alias(
        self,
        alias: str,
        target: str = "",
        weights: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[PutAliasFields],
    ) -> hexcomb_pb2.AliasDescription:
        """`set_alias` in our own words: `weights` (model -> share) split the traffic, from now on."""
        return self.call(operations.put_alias(alias, target, weights, fields), timeout_s)

    def list_aliases(self, id_prefix: str = "") -> Iterator[hexcomb_pb2.AliasDescription]:
        """All aliases, page by page."""
        page_token = ""
        while True:
            page = self.call(operations.aliases_page(page_token, id_prefix))
            yield from page.aliases
            page_token = page.next_page_token
            if not page_token:
                return

    def explain(self, model: str) -> hexcomb_pb2.Explanation:
        """Why a model is where it is, is not here, or is refused."""
        return self.call(operations.explain(model))

    def release(self, model_id: str) -> hexcomb_pb2.ModelDescription:
        """Forget what is held against a model: deaths of pods that it was seen at, and failed loads."""
        return self.call(operations.release(model_id))

    def drain_pod(self, pod: str) -> bool:
        """Have a pod hand over its models and stop. Whether it was draining already."""
        return self.call(operations.drain_pod(pod)).was_draining
