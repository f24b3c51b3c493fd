"""The client of a pool: inference, registration, aliases, status.

    with Client("pod-1:8033,pod-2:8033", tenant="blue") as client:
        client.register("iris", uri="file:///models/iris.onnx")
        client.wait_ready("iris")
        result = client.infer("iris", {"input": rows})              # NumPy in, `result.outputs` out
        answers = client.infer_frame("iris", frame)                 # pandas in and out
        results = client.register_many(registrations("models.csv"), on_progress=bar.update)
        for result in client.infer_stream("talker", {"text_input": ["one by one"]}):
            ...

`AsyncClient` has the same methods, awaited. Every call takes `timeout_s`, the seconds for all its tries together; what
it ends with, if not with an answer, is one of the errors below (`mesh.client.errors` says what to do about each).

The parts that callers need are named here; this is the one package of the mesh that others may import. Importing it
imports neither gRPC, nor pandas, nor anything that serves models.
"""

from __future__ import annotations

from mesh.client.async_client import AsyncClient
from mesh.client.bulk import BadManifest, registrations
from mesh.client.client import Client
from mesh.client.connection import ClientTls
from mesh.client.errors import (
    AlreadyExists,
    DeadlineExceeded,
    HexcombError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Overloaded,
    Refused,
    ServerFailed,
    Unavailable,
    Unsupported,
)
from mesh.client.frames import frame_of
from mesh.client.operations import AliasFields, PutAliasFields, SpecFields, registration
from mesh.client.retries import RetryPolicy
from mesh.client.service_config import SERVICE_CONFIG
from mesh.wire.tensors import InferResult

__all__ = [
    "SERVICE_CONFIG",
    "AliasFields",
    "AlreadyExists",
    "AsyncClient",
    "BadManifest",
    "Client",
    "ClientTls",
    "DeadlineExceeded",
    "HexcombError",
    "InferResult",
    "InvalidRequest",
    "NotAllowed",
    "NotFound",
    "Overloaded",
    "PutAliasFields",
    "Refused",
    "RetryPolicy",
    "ServerFailed",
    "SpecFields",
    "Unavailable",
    "Unsupported",
    "frame_of",
    "registration",
    "registrations",
]
