"""gRPC: health, server metadata, model metadata."""

from __future__ import annotations

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.conformance.asking import GrpcServer, Refusal
from tests.conformance.cases import MUST, SHOULD, case, not_applicable
from tests.conformance.conftest import of_datatypes
from tests.conformance.subjects import Subject

HEALTH, METADATA = "inference_grpc.md, Health", "inference_grpc.md, Metadata"
NOBODY = "no-such-model-anywhere"


@case("grpc.live", MUST, f"{HEALTH}: Server Live")
def test_live(grpc_server: GrpcServer) -> None:
    """A server that answers is live."""
    assert grpc_server.call("ServerLive", pb.ServerLiveRequest()).live is True


@case("grpc.ready", MUST, f"{HEALTH}: Server Ready")
def test_ready(grpc_server: GrpcServer) -> None:
    """A server that is ready for inferencing says so."""
    assert grpc_server.call("ServerReady", pb.ServerReadyRequest()).ready is True


@case("grpc.metadata.server", MUST, f"{METADATA}: Server Metadata")
def test_server_metadata(grpc_server: GrpcServer) -> None:
    """The server has a name."""
    assert grpc_server.call("ServerMetadata", pb.ServerMetadataRequest()).name, "the server's name is empty"


@case("grpc.metadata.server.version", SHOULD, f"{METADATA}: Server Metadata")
def test_server_version(grpc_server: GrpcServer) -> None:
    """The server has a version."""
    assert grpc_server.call("ServerMetadata", pb.ServerMetadataRequest()).version, "the server's version is empty"


@case("grpc.ready.model", MUST, f"{HEALTH}: Model Ready")
def test_model_ready(grpc_server: GrpcServer, subject: Subject) -> None:
    """A model that answers requests is ready."""
    assert grpc_server.call("ModelReady", pb.ModelReadyRequest(name=subject.name)).ready is True


@case("grpc.ready.model.version", MUST, f"{HEALTH}: Model Ready")
def test_model_version_ready(grpc_server: GrpcServer, subject: Subject) -> None:
    """So is each version of it that the metadata name."""
    for version in _metadata(grpc_server, subject).versions:
        assert grpc_server.call("ModelReady", pb.ModelReadyRequest(name=subject.name, version=version)).ready is True


@case("grpc.ready.model.unknown", SHOULD, f"{HEALTH}: Model Ready")
def test_unknown_model_ready(grpc_server: GrpcServer) -> None:
    """A model that is not there is not ready: `false`, or NOT_FOUND; no other error."""
    answer = grpc_server.try_call("ModelReady", pb.ModelReadyRequest(name=NOBODY))
    if isinstance(answer, Refusal):
        assert answer.code is grpc.StatusCode.NOT_FOUND, f"refused with {answer}"
    else:
        assert answer.ready is False, "a model that is not there is called ready"


@case("grpc.metadata.model", MUST, f"{METADATA}: Model Metadata")
@of_datatypes()
def test_model_metadata(grpc_server: GrpcServer, identity: Subject) -> None:
    """Name, inputs and outputs are the model's: names, datatypes of the table, shapes with -1 for any size."""
    answer = _metadata(grpc_server, identity)
    assert answer.name == identity.name, f"its name is {answer.name!r}"
    for which, declared, found in (
        ("inputs", identity.inputs, answer.inputs),
        ("outputs", identity.outputs, answer.outputs),
    ):
        expected = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in declared]
        assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found] == expected, (
            f"{which} are {[(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found]}, not {expected}"
        )


@case("grpc.metadata.model.platform", SHOULD, "inference_grpc.md, Platforms")
def test_model_platform(grpc_server: GrpcServer, subject: Subject) -> None:
    """The platform is told."""
    assert _metadata(grpc_server, subject).platform, "the platform is empty"


@case("grpc.metadata.model.version", MUST, f"{METADATA}: Model Metadata")
def test_model_metadata_of_a_version(grpc_server: GrpcServer, subject: Subject) -> None:
    """The metadata of a version that they name can be asked for."""
    for version in _metadata(grpc_server, subject).versions:
        request = pb.ModelMetadataRequest(name=subject.name, version=version)
        assert grpc_server.call("ModelMetadata", request).name == subject.name


UNKNOWN = [pytest.param(NOBODY, "", id="model"), pytest.param("", "no-such-version", id="version")]


@case("grpc.metadata.model.unknown", MUST, f"{METADATA}: Model Metadata")
@pytest.mark.parametrize(("name", "version"), UNKNOWN)
def test_unknown_metadata(grpc_server: GrpcServer, subject: Subject, name: str, version: str) -> None:
    """What is not there has no metadata: the status is an error."""
    assert isinstance(_try(grpc_server, subject, name, version), Refusal), "metadata of what is not there"


@case("grpc.metadata.model.unknown.code", SHOULD, f"{METADATA}: Model Metadata")
@pytest.mark.parametrize(("name", "version"), UNKNOWN)
def test_unknown_metadata_is_not_found(grpc_server: GrpcServer, subject: Subject, name: str, version: str) -> None:
    """The error is NOT_FOUND, so that a client knows that a retry does not help; a version may be INVALID_ARGUMENT."""
    answer = _try(grpc_server, subject, name, version)
    if not isinstance(answer, Refusal):
        not_applicable("it was not refused: the case above")
    allowed = {grpc.StatusCode.NOT_FOUND} | ({grpc.StatusCode.INVALID_ARGUMENT} if version else set())
    assert answer.code in allowed, f"refused with {answer}"


@case("grpc.unimplemented", SHOULD, "gRPC's status codes")
def test_unknown_method(grpc_server: GrpcServer) -> None:
    """A method that is not there is UNIMPLEMENTED."""
    answer = grpc_server.try_bytes("NoSuchMethod", b"")
    assert isinstance(answer, Refusal)
    assert answer.code is grpc.StatusCode.UNIMPLEMENTED, f"refused with {answer}"


def _metadata(server: GrpcServer, subject: Subject) -> pb.ModelMetadataResponse:
    return server.call("ModelMetadata", pb.ModelMetadataRequest(name=subject.name))


def _try(server: GrpcServer, subject: Subject, name: str, version: str) -> pb.ModelMetadataResponse | Refusal:
    return server.try_call("ModelMetadata", pb.ModelMetadataRequest(name=name or subject.name, version=version))
