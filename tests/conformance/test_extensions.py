"""Triton's extensions, for servers that advertise them in their metadata; streams, for servers that answer them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.conformance.asking import GrpcServer, HttpServer, Refusal, check_outputs, infer_request, outputs_of
from tests.conformance.cases import EXTENSION, case, not_applicable
from tests.conformance.json_bodies import check_error
from tests.conformance.subjects import Subject
from tests.conformance.tensors import to_raw

NOBODY = "no-such-model-anywhere"
REPOSITORY, CONFIGURATION = "Triton: extension_model_repository.md", "Triton: extension_model_configuration.md"
STATISTICS, PRIORITY = "Triton: extension_statistics.md", "Triton: extension_schedule_policy.md"
TRACE, LOGGING = "Triton: extension_trace.md", "Triton: extension_logging.md"
SHARED_MEMORY, STREAMS = "Triton: extension_shared_memory.md", "Triton: grpc_service.proto, ModelStreamInfer"


@pytest.fixture(autouse=True)
def advertised(request: pytest.FixtureRequest, extensions: frozenset[str]) -> None:
    """Only of servers that say so."""
    mark = request.node.get_closest_marker("case")
    extension = str(mark.kwargs["id"]).split(".")[0]
    if extension != "stream" and extension not in extensions:
        not_applicable(f"{extension} is not advertised")


@case("model_repository.index", EXTENSION, REPOSITORY)
def test_index(grpc_server: GrpcServer, subject: Subject) -> None:
    """The index has every model, its version and state; that of one that answers is READY."""
    answer = grpc_server.call("RepositoryIndex", pb.RepositoryIndexRequest())
    states = {model.state for model in answer.models if model.name == subject.name}
    assert "READY" in states, f"the states of {subject.name} are {states}"


@case("model_repository.index.ready", EXTENSION, REPOSITORY)
def test_index_of_ready_models(grpc_server: GrpcServer, subject: Subject) -> None:
    """With `ready`, the index has only models that are."""
    answer = grpc_server.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
    assert subject.name in {model.name for model in answer.models}
    assert {model.state for model in answer.models} <= {"READY", ""}, "models that are not READY"


@case("model_repository.index.rest", EXTENSION, REPOSITORY)
def test_index_over_http(http_server: HttpServer, subject: Subject) -> None:
    """POST /v2/repository/index gives the same, as a list."""
    answer = http_server.ask("POST", "/v2/repository/index", {}).answer
    assert isinstance(answer, list), f"the body is {str(answer)[:160]}"
    assert "READY" in {model.get("state") for model in answer if model["name"] == subject.name}, "it is not READY"


@case("model_repository.load", EXTENSION, REPOSITORY)
def test_load(grpc_server: GrpcServer, subject: Subject) -> None:
    """A model can be loaded, also when it is; it answers then."""
    grpc_server.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=subject.name))
    inputs = subject.request()
    check_outputs(subject, inputs, outputs_of(grpc_server.infer(infer_request(subject, inputs))))


@case("model_repository.unload", EXTENSION, REPOSITORY)
def test_unload(grpc_server: GrpcServer, subject: Subject) -> None:
    """A model can be unloaded, and loaded again; it answers then."""
    grpc_server.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=subject.name))
    grpc_server.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=subject.name))
    inputs = subject.request()
    check_outputs(subject, inputs, outputs_of(grpc_server.infer(infer_request(subject, inputs))))


@case("model_repository.load.rest", EXTENSION, REPOSITORY)
def test_load_over_http(http_server: HttpServer, subject: Subject) -> None:
    """POST /v2/repository/models/M/load does the same."""
    assert http_server.ask("POST", f"/v2/repository/models/{subject.name}/load", {}).code == 200
    assert http_server.ask("GET", f"/v2/models/{subject.name}/ready").code == 200


@case("model_repository.load.unknown", EXTENSION, REPOSITORY)
def test_load_of_nobody(grpc_server: GrpcServer) -> None:
    """What is not there cannot be loaded."""
    answer = grpc_server.try_call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=NOBODY))
    assert isinstance(answer, Refusal), "it was loaded"


@case("model_repository.load.unknown.rest", EXTENSION, REPOSITORY)
def test_load_of_nobody_over_http(http_server: HttpServer) -> None:
    """Over HTTP that is {"error": text}."""
    check_error(http_server.ask("POST", f"/v2/repository/models/{NOBODY}/load", {}))


@case("model_configuration.config", EXTENSION, CONFIGURATION)
def test_config(grpc_server: GrpcServer, subject: Subject) -> None:
    """A model's configuration has its name, and its inputs and outputs: `dims` without the batch, where one is told."""
    config = grpc_server.call("ModelConfig", pb.ModelConfigRequest(name=subject.name)).config
    assert config.name == subject.name, f"its name is {config.name!r}"
    skipped = 1 if config.max_batch_size else 0
    for found, declared in ((config.input, subject.inputs), (config.output, subject.outputs)):
        expected = [(tensor.name, list(tensor.shape[skipped:])) for tensor in declared]
        assert [(tensor.name, list(tensor.dims)) for tensor in found] == expected, f"{list(found)}"


@case("model_configuration.config.rest", EXTENSION, CONFIGURATION)
def test_config_over_http(http_server: HttpServer, subject: Subject) -> None:
    """GET /v2/models/M/config gives the same in JSON, numbers as numbers."""
    config = http_server.ask("GET", f"/v2/models/{subject.name}/config").answer
    assert config["name"] == subject.name
    assert isinstance(config["max_batch_size"], int), f"max_batch_size is {config['max_batch_size']!r}"
    assert [tensor["name"] for tensor in config["input"]] == [tensor.name for tensor in subject.inputs]


@case("model_configuration.unknown", EXTENSION, CONFIGURATION)
def test_config_of_nobody(grpc_server: GrpcServer) -> None:
    """What is not there has no configuration."""
    answer = grpc_server.try_call("ModelConfig", pb.ModelConfigRequest(name=NOBODY))
    assert isinstance(answer, Refusal), "it has one"
    assert answer.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), f"refused with {answer}"


@case("statistics.counts", EXTENSION, STATISTICS)
def test_statistics(grpc_server: GrpcServer, subject: Subject) -> None:
    """Successes are counted, and their time."""

    def successes() -> Any:
        answer = grpc_server.call("ModelStatistics", pb.ModelStatisticsRequest(name=subject.name))
        assert {stats.name for stats in answer.model_stats} == {subject.name}, "statistics of other models"
        return answer.model_stats[0].inference_stats.success

    before = successes()
    for _ in range(3):
        grpc_server.infer(infer_request(subject))
    after = successes()
    assert after.count - before.count == 3, f"{after.count - before.count} of 3 requests were counted"
    assert after.ns > before.ns, "they took no time"


@case("statistics.rest", EXTENSION, STATISTICS)
def test_statistics_over_http(http_server: HttpServer, subject: Subject) -> None:
    """GET /v2/models/M/stats gives the same in JSON, numbers as numbers."""
    (stats, *_) = http_server.ask("GET", f"/v2/models/{subject.name}/stats").answer["model_stats"]
    assert stats["name"] == subject.name
    assert isinstance(stats["inference_stats"]["success"]["count"], int), "its count is no number"


@case("schedule_policy.parameters", EXTENSION, PRIORITY)
@pytest.mark.parametrize(
    ("name", "value"),
    [("priority", pb.InferParameter(uint64_param=1)), ("timeout", pb.InferParameter(int64_param=20_000_000))],
    ids=["priority", "timeout"],
)
def test_priority_and_timeout(grpc_server: GrpcServer, subject: Subject, name: str, value: pb.InferParameter) -> None:
    """A request may have a priority, and a timeout in microseconds, which this one does not reach."""
    inputs = subject.request()
    request = infer_request(subject, inputs)
    request.parameters[name].CopyFrom(value)
    check_outputs(subject, inputs, outputs_of(grpc_server.infer(request)))


@contextlib.contextmanager
def region(grpc_server: GrpcServer, size_bytes: int) -> Iterator[SharedMemory]:
    """Shared memory that the server knows. Only where it is on this machine."""
    if not grpc_server.target.startswith(("127.", "localhost", "[::1]")):
        not_applicable("the server is on another machine")
    memory = SharedMemory(create=True, size=size_bytes)
    try:
        request = pb.SystemSharedMemoryRegisterRequest(name="conformance", key=f"/{memory.name}", byte_size=size_bytes)
        grpc_server.call("SystemSharedMemoryRegister", request)
        yield memory
        grpc_server.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="conformance"))
    finally:
        memory.close()
        memory.unlink()


@case("system_shared_memory.status", EXTENSION, SHARED_MEMORY)
def test_regions_are_listed(grpc_server: GrpcServer) -> None:
    """Regions that are registered are listed, until they are not."""
    request = pb.SystemSharedMemoryStatusRequest()
    with region(grpc_server, 64):
        found = grpc_server.call("SystemSharedMemoryStatus", request).regions["conformance"]
        assert found.byte_size == 64, f"its size is {found.byte_size}"
    assert "conformance" not in grpc_server.call("SystemSharedMemoryStatus", request).regions


@case("system_shared_memory.infer", EXTENSION, SHARED_MEMORY)
def test_tensors_in_shared_memory(grpc_server: GrpcServer, subject: Subject) -> None:
    """Inputs are read from, and outputs written to, shared memory."""
    inputs = subject.request()
    raw = to_raw(subject.inputs[0].datatype, inputs[subject.inputs[0].name])
    with region(grpc_server, 2 * len(raw)) as memory:
        assert memory.buf is not None
        memory.buf[: len(raw)] = raw
        request = infer_request(subject, inputs)
        del request.raw_input_contents[:]
        output = request.outputs.add(name=subject.outputs[0].name)
        for parameters, offset in ((request.inputs[0].parameters, 0), (output.parameters, len(raw))):
            parameters["shared_memory_region"].string_param = "conformance"
            parameters["shared_memory_byte_size"].int64_param = len(raw)
            parameters["shared_memory_offset"].int64_param = offset
        answer = grpc_server.infer(request)
        assert answer.outputs[0].name == subject.outputs[0].name
        written = bytes(memory.buf[len(raw) : 2 * len(raw)])
    assert written == raw or subject.computes != "identity", "what was written is not the answer"


@case("system_shared_memory.unknown", EXTENSION, SHARED_MEMORY)
def test_an_unknown_region(grpc_server: GrpcServer, subject: Subject) -> None:
    """A request that names a region that is not there is refused."""
    request = infer_request(subject)
    del request.raw_input_contents[:]
    request.inputs[0].parameters["shared_memory_region"].string_param = "no-such-region"
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 32
    answer = grpc_server.try_call("ModelInfer", request)
    assert isinstance(answer, Refusal), "it was answered"


@case("trace.settings", EXTENSION, TRACE)
def test_trace_settings(grpc_server: GrpcServer, subject: Subject) -> None:
    """There are trace settings of all models and of one: a level, a rate and a count, each of text."""
    for name in ("", subject.name):
        found = grpc_server.call("TraceSetting", pb.TraceSettingRequest(model_name=name)).settings
        missing = {"trace_level", "trace_rate", "trace_count"} - {key for key, value in found.items() if value.value}
        assert not missing, f"without {missing}: {dict(found)}"


@case("trace.settings.rest", EXTENSION, TRACE)
def test_trace_settings_over_http(http_server: HttpServer, subject: Subject) -> None:
    """GET /v2[/models/M]/trace/setting gives the same."""
    for path in ("/v2/trace/setting", f"/v2/models/{subject.name}/trace/setting"):
        found = http_server.ask("GET", path).answer
        assert isinstance(found, dict)
        assert {"trace_level", "trace_rate", "trace_count"} <= found.keys(), f"{path}: {found}"


@case("trace.change", EXTENSION, TRACE)
def test_a_trace_setting_of_a_model(grpc_server: GrpcServer, subject: Subject) -> None:
    """A model's own setting can be changed, and without a value goes back to that of all."""

    def rate(*changed: str, of: str = subject.name, change: bool = True) -> list[str]:
        request = pb.TraceSettingRequest(model_name=of)
        if change:
            request.settings["trace_rate"].value.extend(changed)
        return list(grpc_server.call("TraceSetting", request).settings["trace_rate"].value)

    try:
        assert rate("7") == ["7"], "it was not changed"
        assert rate(change=False) == ["7"], "it is not what it was changed to"
    finally:
        cleared = rate()
    assert cleared == rate(of="", change=False), f"cleared it is {cleared}"


@case("logging.settings", EXTENSION, LOGGING)
def test_log_settings(grpc_server: GrpcServer) -> None:
    """The log settings tell which severities are written, and how verbosely."""
    found = grpc_server.call("LogSettings", pb.LogSettingsRequest()).settings
    for key in ("log_info", "log_warning", "log_error"):
        assert found[key].WhichOneof("parameter_choice") == "bool_param", f"{key} is no truth value: {found[key]}"
    assert found["log_verbose_level"].WhichOneof("parameter_choice") == "uint32_param", "log_verbose_level is no number"


@case("logging.settings.rest", EXTENSION, LOGGING)
def test_log_settings_over_http(http_server: HttpServer) -> None:
    """GET /v2/logging gives the same."""
    found = http_server.ask("GET", "/v2/logging").answer
    assert isinstance(found["log_info"], bool), f"log_info is {found['log_info']!r}"
    assert isinstance(found["log_verbose_level"], int), f"log_verbose_level is {found['log_verbose_level']!r}"


@case("logging.change", EXTENSION, LOGGING)
def test_a_log_setting(grpc_server: GrpcServer) -> None:
    """A log setting can be changed, and changed back."""
    verbose_level = "log_verbose_level"

    def level(value: int) -> int:
        request = pb.LogSettingsRequest()
        request.settings[verbose_level].uint32_param = value
        return int(grpc_server.call("LogSettings", request).settings[verbose_level].uint32_param)

    before = grpc_server.call("LogSettings", pb.LogSettingsRequest()).settings[verbose_level].uint32_param
    try:
        assert level(before + 1) == before + 1, "it was not changed"
    finally:
        after = level(before)
    assert after == before, "it was not changed back"


def _streamed(server: GrpcServer, *requests: Any) -> list[Any]:
    answers = server.stream(requests)
    if isinstance(answers, Refusal):
        # grpc's client says so in place of the status, when the server ends a stream before it has read it.
        if answers.code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN):
            not_applicable(f"ModelStreamInfer is not there: {answers}")
        raise AssertionError(f"the stream was refused: {answers}")
    return answers


@case("stream.one-by-one", EXTENSION, STREAMS)
def test_stream(grpc_server: GrpcServer, subject: Subject) -> None:
    """Each request of a stream is answered, in a message that has the answer inside."""
    inputs = subject.request()
    answers = _streamed(grpc_server, *(infer_request(subject, inputs, id=str(number)) for number in range(3)))
    assert len(answers) == 3, f"{len(answers)} answers to 3 requests"
    for answer in answers:
        assert not answer.error_message, answer.error_message
        check_outputs(subject, inputs, outputs_of(answer.infer_response))
    assert {answer.infer_response.id for answer in answers} == {"0", "1", "2"}


@case("stream.errors", EXTENSION, STREAMS)
def test_errors_in_a_stream(grpc_server: GrpcServer, subject: Subject) -> None:
    """What is wrong with one request is said in its answer, and the stream goes on."""
    inputs = subject.request()
    wrong = infer_request(subject, inputs)
    wrong.model_name = NOBODY
    answers = _streamed(grpc_server, wrong, infer_request(subject, inputs))
    assert len(answers) == 2, f"{len(answers)} answers to 2 requests"
    assert sorted(bool(answer.error_message) for answer in answers) == [False, True], "none of them, or both, failed"
    (good,) = (answer for answer in answers if not answer.error_message)
    check_outputs(subject, inputs, outputs_of(good.infer_response))
