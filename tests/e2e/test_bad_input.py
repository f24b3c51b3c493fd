"""Bad input against a real pod: each gets a clear error with the right code, nothing is lost, and the pod goes on.

Every test ends the same way: a good request succeeds, and the pod comes to rest with nothing reserved, nothing waiting
and no copy held. The bytes are sent as they are, so that no client of ours refuses them first.
"""

from __future__ import annotations

import asyncio
import io
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
import pytest

from mesh.client import (
    AlreadyExists,
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Refused,
    RetryPolicy,
    ServerFailed,
    Unavailable,
)
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2, inference_pb2, mmesh_pb2
from mesh.wire.tensors import encode_request

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
RAISE, WRONG_SHAPE, WAIT = 2.0, 4.0, 5.0
ONE_TRY = RetryPolicy(attempts_max=1)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    return start_module_pod(
        capacity="256MiB",
        trusted_prefixes=f"{files.directory.as_uri()}/",
        failure_backoff_base_s=0.2,
        message_size_max="4MiB",
    )


@pytest.fixture
def client(pod: Pod, files: ModelFiles) -> Iterator[Client]:
    """A client of the pod with two good models; after the test, the pod still serves them and is at rest."""
    with pod.client(timeout_s=20.0, retry=ONE_TRY) as client:
        good, words = files.scale(), files.words()
        client.register("good", uri=good.uri)
        client.register("words", uri=words.uri)
        yield client
        np.testing.assert_array_equal(client.infer("good", good.inputs).outputs["y"], good.expected["y"])
    pod.wait_settled()


def tensor(name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (1, 4), **fields: Any) -> Any:
    return inference_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, **fields)


def request(*inputs: Any, raw: tuple[bytes, ...] = (), model: str = "good", **fields: Any) -> bytes:
    message = inference_pb2.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw, **fields)
    return message.SerializeToString()


FOUR = struct.pack("<4f", 1, 2, 3, 4)


def typed(values: list[float], **fields: Any) -> Any:
    message = tensor(**fields)
    message.contents.fp32_contents.extend(values)
    return message


REQUESTS: dict[str, tuple[bytes, grpc.StatusCode, tuple[str, ...]]] = {
    "unknown model": (request(tensor(), raw=(FOUR,), model="nobody"), MISSING, ("nobody", "not found", "register")),
    "empty model name": (request(tensor(), raw=(FOUR,), model=""), INVALID, ("model_name", "empty")),
    "unknown version": (
        request(tensor(), raw=(FOUR,), model_version="77777"),
        MISSING,
        ("version", "'77777'", "current version"),
    ),
    "wrong input name": (request(tensor("z"), tensor("x"), raw=(FOUR, FOUR)), INVALID, ("'z'", "x")),
    "input missing": (request(), INVALID, ("'x'",)),
    "wrong datatype": (
        request(tensor(datatype="INT64", shape=(1, 4)), raw=(bytes(32),)),
        INVALID,
        ("'x'", "INT64", "FP32"),
    ),
    "unknown datatype": (request(tensor(datatype="FP31"), raw=(FOUR,)), INVALID, ("'x'", "'FP31'", "FP32")),
    "wrong shape": (request(tensor(shape=(2, 2)), raw=(FOUR,)), INVALID, ("'x'", "[2, 2]", "[-1, 4]")),
    "wrong rank": (request(tensor(shape=(4,)), raw=(FOUR,)), INVALID, ("'x'", "[4]", "[-1, 4]")),
    "negative dimension": (request(tensor(shape=(-1, 4)), raw=(FOUR,)), INVALID, ("'x'", "[-1, 4]", "negative")),
    "absurd shape": (request(tensor(shape=(2**62, 2**62)), raw=(FOUR,)), INVALID, ("'x'", "16 were sent")),
    "too few raw bytes": (request(tensor(), raw=(FOUR[:-1],)), INVALID, ("'x'", "16 bytes", "15 were sent")),
    "too few typed elements": (request(typed([1.0])), INVALID, ("'x'", "4 elements", "holds 1")),
    "typed contents in the wrong field": (request(typed([1.0], datatype="INT64")), INVALID, ("'x'", "int64_contents")),
    "raw and typed contents mixed": (
        request(typed([1.0, 2.0, 3.0, 4.0]), raw=(FOUR,)),
        INVALID,
        ("'x'", "typed contents", "raw contents"),
    ),
    "fewer raw contents than inputs": (
        request(tensor("x"), tensor("z"), raw=(FOUR,)),
        INVALID,
        ("2 inputs", "raw contents for 1"),
    ),
    "an input sent twice": (request(tensor("x"), tensor("x"), raw=(FOUR, FOUR)), INVALID, ("'x'", "twice")),
    "unknown output": (
        request(tensor(), raw=(FOUR,), outputs=[{"name": "q"}]),
        INVALID,
        ("'q'", "y"),
    ),
    "BYTES with a length beyond the end": (
        request(
            tensor("text", "BYTES", (2,)),
            raw=(struct.pack("<I", 1) + b"a" + struct.pack("<I", 9) + b"b",),
            model="words",
        ),
        INVALID,
        ("'text'", "element 1", "claims 9 bytes", "1 are left"),
    ),
    "BYTES with bytes left over": (
        request(tensor("text", "BYTES", (1,)), raw=(struct.pack("<I", 1) + b"ab",), model="words"),
        INVALID,
        ("'text'", "1 bytes are left"),
    ),
    "shared memory": (
        request(tensor(parameters={"shared_memory_region": {"string_param": "region"}}), raw=(FOUR,)),
        INVALID,
        ("shared_memory_region", "register it there"),
    ),
    "a truncated message": (request(tensor(), raw=(FOUR,))[:-3], INVALID, ()),
}


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_that_does_not_fit_is_refused_with_field_found_and_allowed(
    client: Client, pod: Pod, raw_call: Callable[..., Any], files: ModelFiles, case: str, cold: bool
) -> None:
    body, code, words = REQUESTS[case]
    if cold:  # a fresh generation, not loaded yet
        for name in ("good", "words"):
            client.unregister(name)
        client.register("good", uri=files.scale().uri)
        client.register("words", uri=files.words().uri)
    else:
        client.ensure_loaded("good")
        client.ensure_loaded("words")
    refusal = raw_call(pod.target, messages.MODEL_INFER.path, body)
    assert not isinstance(refusal, bytes), "it was answered"
    assert refusal.code is code, refusal.message
    for word in words:
        assert word in refusal.message


def test_random_bytes_to_any_method_are_refused_without_a_defect(
    client: Client, pod: Pod, raw_call: Callable[..., Any]
) -> None:
    before = pod.log_text().count("incident")
    registered = {model.id for model in client.list_models()}
    methods = [
        method
        for method in vars(messages).values()
        if isinstance(method, messages.Method)
        and not method.streams
        and not method.path.startswith("/hexcomb.v1.Pool/")  # of a pod that is not alone: test_pool_refusals
    ]
    seeds = random.Random(11)
    good = request(tensor(), raw=(FOUR,), model="nobody")  # with a name that no damaged call can do harm to
    unimplemented = grpc.StatusCode.UNIMPLEMENTED  # memory of GPUs
    allowed = {INVALID, MISSING, unimplemented, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS}
    for method in methods:
        for _ in range(12):
            body = bytearray(seeds.choice([good, seeds.randbytes(seeds.randrange(1, 80))]))
            for _ in range(seeds.randrange(1, 4)):
                body[seeds.randrange(len(body))] = seeds.randrange(256)
            answer = raw_call(pod.target, method.path, bytes(body))
            assert isinstance(answer, bytes) or answer.code in allowed, (method.path, bytes(body), answer)
    assert pod.log_text().count("incident") == before
    for model in list(client.list_models()):
        if model.id not in registered:
            client.unregister(model.id)


def test_a_message_of_100_mb_is_refused_and_not_kept(client: Client, pod: Pod, raw_call: Callable[..., Any]) -> None:
    process = psutil.Process(pod.process.pid)
    before_bytes = process.memory_info().rss
    for _ in range(3):
        refusal = raw_call(pod.target, messages.MODEL_INFER.path, bytes(100_000_000))
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED, refusal
        assert str(4 << 20) in refusal.message  # the limit
    # The answer may come before the last message's memory has gone back.
    pod.wait_until(lambda: process.memory_info().rss - before_bytes < 60 << 20, "what was refused is not kept")


# Artifacts ------------------------------------------------------------------------------------------------------


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _corrupt_onnx(directory: Path, files: ModelFiles) -> Path:
    content = bytearray(files.scale().path.read_bytes())
    content[len(content) // 2 :] = random.Random(3).randbytes(len(content) - len(content) // 2)
    return _write(directory / "model.onnx", bytes(content))


def _empty_directory(directory: Path, files: ModelFiles) -> Path:
    path = directory / "nothing"
    path.mkdir()
    return path


ARTIFACTS: dict[str, tuple[Callable[[Path, Any], Path], str, tuple[str, ...]]] = {
    "corrupt ONNX": (_corrupt_onnx, "onnx", ()),
    "truncated ONNX": (
        lambda d, f: _write(d / "model.onnx", f.scale(3, 40_000).path.read_bytes()[:20_000]),
        "onnx",
        (),
    ),
    "truncated XGBoost": (
        lambda d, f: _write(d / "model.json", f.xgboost().path.read_bytes()[:-50]),
        "xgboost",
        (),
    ),
    "empty, format declared": (lambda d, f: _write(d / "model.onnx", b""), "onnx", ("empty",)),
    "empty, format to be found": (lambda d, f: _write(d / "model.onnx", b""), "", ("empty",)),
    "empty directory": (_empty_directory, "", ()),
    "missing": (lambda d, f: d / "absent.onnx", "onnx", ("absent.onnx",)),
    "ONNX declared as XGBoost": (lambda d, f: _write(d / "m.json", f.scale().path.read_bytes()), "xgboost", ()),
    "XGBoost declared as LightGBM": (lambda d, f: _write(d / "m.txt", f.xgboost().path.read_bytes()), "lightgbm", ()),
    "a text, format to be found": (
        lambda d, f: _write(d / "m", b"hello, world"),
        "",
        ("fits no known format", "hello"),
    ),
}


@pytest.mark.parametrize("case", ARTIFACTS)
def test_a_bad_artifact_fails_for_good_says_why_and_can_be_replaced(
    client: Client, files: ModelFiles, tmp_path: Path, case: str
) -> None:
    make, format_name, words = ARTIFACTS[case]
    path = make(tmp_path, files)
    generation = client.register("bad", uri=path.as_uri(), format=format_name).generation
    try:
        assert client.model_ready("bad")
        with pytest.raises(Refused) as refused:
            client.infer("bad", files.scale().inputs)
        for word in words:
            assert word in refused.value.message
        described = client.describe("bad")
        assert described.state == hexcomb_pb2.FAILED
        assert described.failure.permanent
        assert described.failure.message
        assert described.failure.message in refused.value.message
        assert not client.model_ready("bad")
        attempts = described.failure.attempts
        with pytest.raises(Refused):
            client.infer("bad", files.scale().inputs)
        assert client.describe("bad").failure.attempts == attempts, "a permanent failure was tried again"
        client.register("bad", uri=files.scale().uri, if_generation=generation)
        assert client.infer("bad", files.scale().inputs).outputs["y"].shape == (2, 4)
    finally:
        client.unregister("bad")


def test_an_artifact_that_cannot_even_be_named_is_refused_at_registration(client: Client, files: ModelFiles) -> None:
    for fields, words in (
        ({"uri": ""}, ("uri",)),
        ({"uri": "ftp://somewhere/model.onnx"}, ("ftp", "file")),
        ({"uri": files.scale().uri, "format": "coreml"}, ("'coreml'", "onnx")),
        ({"uri": files.scale().uri, "checksum": "md5:abc"}, ("checksum", "sha256")),
        ({"uri": files.scale().uri, "isolation": "sometimes"}, ("isolation", "sometimes", "process")),
        ({"uri": files.scale().uri, "capacity_hint_bytes": 1 << 62, "load_timeout_s": -1.0}, ("load_timeout_s",)),
    ):
        with pytest.raises(InvalidRequest) as refused:
            client.register("unnamed", **fields)  # type: ignore[arg-type]
        for word in words:
            assert word in refused.value.message
    with pytest.raises(InvalidRequest):
        client.register("", uri=files.scale().uri)
    with pytest.raises(NotFound):
        client.describe("unnamed")


def test_a_wrong_checksum_is_told_from_the_right_one(client: Client, files: ModelFiles) -> None:
    client.register("checked", uri=files.scale().uri, checksum="sha256:" + "0" * 64)
    with pytest.raises(Refused, match=r"checksum|sha256"):
        client.infer("checked", files.scale().inputs)
    client.unregister("checked")


def _tar(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _zip(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(("pack", "suffix"), [(_tar, "tar.gz"), (_zip, "zip")])
def test_an_archive_that_leaves_its_directory_is_refused_and_writes_nothing(
    client: Client, pod: Pod, files: ModelFiles, tmp_path: Path, pack: Callable[..., bytes], suffix: str
) -> None:
    archive = tmp_path / f"model.{suffix}"
    archive.write_bytes(pack({"model.onnx": files.scale().path.read_bytes(), "../../escaped": b"caught you"}))
    client.register("archive", uri=archive.as_uri())
    with pytest.raises(Refused, match=r"escaped"):
        client.infer("archive", files.scale().inputs)
    client.unregister("archive")
    assert not list(pod.log.parent.rglob("escaped*"))
    archive = tmp_path / f"good.{suffix}"
    archive.write_bytes(pack({"model.onnx": files.scale().path.read_bytes()}))
    client.register("archive", uri=archive.as_uri())
    assert client.infer("archive", files.scale().inputs).outputs["y"].shape == (2, 4)
    client.unregister("archive")


class _TouchesAFile:
    """Unpickling this leaves a trace."""

    def __init__(self, trace: str) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self._trace, "w"))


@pytest.mark.parametrize("format_name", ["pickle", "torch", ""])
def test_what_runs_code_at_load_is_refused_from_an_untrusted_prefix(
    client: Client, files: ModelFiles, tmp_path: Path, format_name: str
) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(_TouchesAFile(str(trace))))
    if format_name:
        with pytest.raises(InvalidRequest) as refused:
            client.register("pickled", uri=path.as_uri(), format=format_name)
        for word in (f"'{format_name}'", "can run code", "--trusted-prefixes", "isolation=process"):
            assert word in refused.value.message
        with pytest.raises(NotFound):
            client.describe("pickled")
    else:
        client.register("pickled", uri=path.as_uri())
        with pytest.raises(Refused):
            client.infer("pickled", files.scale().inputs)
        client.unregister("pickled")
    assert not trace.exists()


# Registrations --------------------------------------------------------------------------------------------------


def test_another_spec_under_an_id_is_refused_unless_the_generation_is_given(client: Client, files: ModelFiles) -> None:
    first, second = files.scale(2), files.scale(3)
    generation = client.register("twice", uri=first.uri).generation
    assert client.register("twice", uri=first.uri).outcome == hexcomb_pb2.RegistrationResult.UNCHANGED
    with pytest.raises(AlreadyExists) as refused:
        client.register("twice", uri=second.uri)
    for word in ("'twice'", "uri", f"if_generation={generation}"):
        assert word in refused.value.message
    np.testing.assert_array_equal(client.infer("twice", first.inputs).outputs["y"], first.expected["y"])
    with pytest.raises(Refused, match=f"generation {generation}.*{generation + 5}"):
        client.register("twice", uri=second.uri, if_generation=generation + 5)
    updated = client.register("twice", uri=second.uri, if_generation=generation)
    assert updated.generation == generation + 1
    client.ensure_loaded("twice")
    np.testing.assert_array_equal(client.infer("twice", second.inputs).outputs["y"], second.expected["y"])
    client.unregister("twice")


def test_modelmesh_registration_of_another_spec_is_already_exists(
    client: Client, pod: Pod, files: ModelFiles, raw_call: Callable[..., Any]
) -> None:
    def register(path: str) -> Any:
        info = mmesh_pb2.ModelInfo(type="onnx", path=path)
        body = mmesh_pb2.RegisterModelRequest(modelId="mm", modelInfo=info).SerializeToString()
        return raw_call(pod.target, messages.REGISTER_MODEL.path, body)

    assert isinstance(register(files.scale(2).uri), bytes)
    assert isinstance(register(files.scale(2).uri), bytes)
    assert register(files.scale(3).uri).code is grpc.StatusCode.ALREADY_EXISTS
    client.unregister("mm")


# Load and life --------------------------------------------------------------------------------------------------


async def test_1500_calls_at_once_are_all_answered(client: Client, pod: Pod, files: ModelFiles) -> None:
    example = files.scale()
    client.ensure_loaded("good")
    async with AsyncClient(pod.target, timeout_s=60.0, retry=ONE_TRY) as many:
        answers = await asyncio.gather(
            *(many.infer("good", example.inputs) for _ in range(1500)), return_exceptions=True
        )
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    for answer in answers:
        np.testing.assert_array_equal(answer.outputs["y"], example.expected["y"])  # type: ignore[union-attr]


def _numbers(first: float) -> dict[str, Any]:
    return {"x": np.array([[first, 1.0]], np.float32)}


def test_a_model_that_is_unregistered_while_in_use_finishes_what_it_began(
    client: Client, pod: Pod, files: ModelFiles, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    client.register("leaving", uri=files.obedient().as_uri(), format="python", parameters={"gate": str(gate)})
    client.infer("leaving", _numbers(0))
    with grpc.insecure_channel(pod.target) as channel:
        running = channel.unary_unary(messages.MODEL_INFER.path).future(
            encode_request("leaving", _numbers(WAIT)), timeout=20
        )
        pod.wait_until(Path(f"{gate}.reached").exists, "the model began to run")
        assert client.unregister("leaving")
        with pytest.raises(NotFound):
            client.infer("leaving", _numbers(0))
        assert not running.done()
        gate.touch()
        answer = messages.MODEL_INFER.response.FromString(running.result())
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2 * WAIT, 2.0]
    pod.wait_until(lambda: not _children(pod, "isolation_worker"), "its process ended")


def _children(pod: Pod, word: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pod.process.pid).children(recursive=True):
        try:
            if any(word in argument for argument in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    ("todo", "words"),
    [
        ("hang", ("1.5 s", "load timeout")),
        ("crash", ("SIGABRT",)),
        ("raise", ("ValueError", "no weights for you")),
    ],
)
def test_a_model_that_fails_in_load_harms_nobody_else(
    client: Client, pod: Pod, files: ModelFiles, todo: str, words: tuple[str, ...]
) -> None:
    load_timeout_s = 1.5 if todo == "hang" else 30.0
    uri, parameters = files.obedient().as_uri(), {"load": todo}
    client.register("failing", uri=uri, format="python", parameters=parameters, load_timeout_s=load_timeout_s)
    with grpc.insecure_channel(pod.target) as channel:
        waiting = channel.unary_unary(messages.MODEL_INFER.path).future(
            encode_request("failing", _numbers(0)), timeout=20
        )
        answered = 0
        while not waiting.done():
            client.infer("good", files.scale().inputs)
            answered += 1
        assert answered > 0
        described = client.describe("failing")
        client.unregister("failing")
        assert described.failure.message == waiting.details()
        assert waiting.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
        for word in words:
            assert word in waiting.details()
    pod.wait_until(lambda: not _children(pod, "isolation_worker"), "its process ended")


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (RAISE, ("ValueError", "no answer for you")),
        (WRONG_SHAPE, ("y", "[1, 1]", "[-1, 2]")),
    ],
)
def test_a_model_that_fails_in_predict_is_internal_and_serves_the_next_request(
    client: Client, files: ModelFiles, first: float, words: tuple[str, ...]
) -> None:
    client.register("moody", uri=files.obedient().as_uri(), format="python")
    with pytest.raises(ServerFailed) as failed:
        client.infer("moody", _numbers(first))
    for word in words:
        assert word in failed.value.message
    assert client.infer("moody", _numbers(7)).outputs["y"].tolist() == [[14.0, 2.0]]
    client.unregister("moody")


def test_a_deadline_shorter_than_the_load_ends_only_that_request(
    client: Client, pod: Pod, files: ModelFiles, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    parameters = {"load": "wait", "gate": str(gate)}
    client.register("slow", uri=files.obedient().as_uri(), format="python", parameters=parameters)
    with grpc.insecure_channel(pod.target) as channel:
        patient = channel.unary_unary(messages.MODEL_INFER.path).future(encode_request("slow", _numbers(7)), timeout=20)
        pod.wait_until(Path(f"{gate}.reached").exists, "the load began")
        with pytest.raises(DeadlineExceeded):
            client.infer("slow", _numbers(7), timeout_s=0.3)
        gate.touch()
        assert patient.result()
    assert client.infer("slow", _numbers(7)).outputs["y"].tolist() == [[14.0, 2.0]]
    assert pod.status().load_failures == 0 or "slow" not in client.describe("slow").failure.message
    client.unregister("slow")


def test_a_client_that_leaves_in_the_middle_of_a_load_leaves_nothing_behind(
    client: Client, pod: Pod, files: ModelFiles, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    parameters = {"load": "wait", "gate": str(gate)}
    client.register("left", uri=files.obedient().as_uri(), format="python", parameters=parameters)
    with grpc.insecure_channel(pod.target) as channel:
        leaving = channel.unary_unary(messages.MODEL_INFER.path).future(encode_request("left", _numbers(7)), timeout=20)
        pod.wait_until(Path(f"{gate}.reached").exists, "the load began")
        assert pod.status().requests_waiting == 1
        assert not leaving.done()
    pod.wait_until(lambda: pod.status().requests_waiting == 0, "the waiter left")
    gate.touch()
    pod.wait_settled()
    assert client.infer("left", _numbers(7)).outputs["y"].tolist() == [[14.0, 2.0]]
    client.unregister("left")


# Room -----------------------------------------------------------------------------------------------------------


def test_an_artifact_bigger_than_the_capacity_is_refused_with_both_numbers(
    start_pod: StartPod, files: ModelFiles
) -> None:
    pod = start_pod(capacity="8MiB")
    big, small = files.scale(5, 12 << 20), files.scale(2)
    with pod.client(retry=ONE_TRY) as client:
        client.register("small", uri=small.uri)
        client.register("big", uri=big.uri)
        client.infer("small", small.inputs)
        with pytest.raises(Refused) as refused:
            client.infer("big", big.inputs)
        assert "big" in refused.value.message
        assert "12.1 MiB" in refused.value.message
        assert "8.0 MiB" in refused.value.message
        assert client.describe("small").state == hexcomb_pb2.LOADED, "it was evicted for a model that cannot fit"
    status = pod.wait_settled()
    assert (status.models_resident, status.evictions) == (1, 0)


def test_an_artifact_bigger_than_the_disk_tier_is_refused_and_leaves_no_bytes(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    pod = start_pod(disk_capacity="8MiB")
    big, small = files.scale(5, 12 << 20), files.scale(2)
    with pod.client(retry=ONE_TRY) as client:
        client.register("big", uri=big.uri)
        client.register("small", uri=small.uri)
        with pytest.raises((Refused, Unavailable), match=r"disk"):
            client.infer("big", big.inputs)
        client.infer("small", small.inputs)
    status = pod.wait_settled()
    (disk,) = (tier for tier in status.tiers if tier.tier == "disk")
    assert disk.resident_bytes < 1 << 20
    assert sum(path.stat().st_size for path in (tmp_path / "data").rglob("*") if path.is_file()) < 4 << 20


def test_a_disk_that_fills_up_during_a_fetch_is_a_passing_failure(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    disk = tmp_path / "small-disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=6m none "{disk}" && exec "$@"'
    under = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    try:
        pod = start_pod(data_dir=disk / "data", under=under)
    except (AssertionError, FileNotFoundError) as error:
        pytest.skip(f"this machine gives no private mounts: {str(error)[:200]}")
    big, small = files.scale(5, 12 << 20), files.scale(2)
    with pod.client(retry=ONE_TRY) as client:
        client.register("big", uri=big.uri)
        client.register("small", uri=small.uri)
        with pytest.raises(Unavailable, match=r"disk|space|room") as failed:
            client.infer("big", big.inputs)
        assert failed.value.retry_after_s is not None
        assert not client.describe("big").failure.permanent
        client.infer("small", small.inputs)
        client.register("after", uri=files.scale(3).uri)  # the registry still has room to write
        client.infer("after", small.inputs)
    pod.wait_settled()


def test_none_of_this_was_a_defect_of_the_server(pod: Pod) -> None:
    """Last in this file: nothing that the tests above did was a defect of the server."""
    log = pod.log_text()
    assert " ERROR " not in log
    assert "incident" not in log
