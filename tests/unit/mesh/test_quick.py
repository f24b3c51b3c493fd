"""Inference without a task: the answers that `v2` gives, and what is out of the ordinary left to it untouched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cache.types import ModelKey
from mesh.endpoint.access import Access
from mesh.endpoint.quick import PLANS_MAX, TOGETHER_MIN, QuickInference
from mesh.endpoint.v2 import V2Endpoint
from mesh.plans import Plan
from mesh.request import Answer, Tensors
from mesh.routing.hop import FORWARD_METADATA, Hop, encode_hop
from mesh.routing.router import FirstTry
from mesh.serving import UnknownModel
from mesh.transport.base import Call, Later, LineBroken, Metadata, ReplyWithTrailers, StatusCode, TransportError
from mesh.wire.generated.inference_pb2 import ModelInferRequest
from mesh.wire.messages import MODEL_INFER, PEER_KEY_METADATA, REVISION_METADATA
from mesh.wire.patterns import PATTERN_BYTES_MAX
from mesh.wire.tensors import encode_request
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.base import ModelMetadata, TensorSpec
from runtime_adapters.errors import ModelRaised
from runtime_adapters.validation import InputChecker

ROW = np.arange(4, dtype=np.float32).reshape(1, 4)
GENERATION = 3
REVISION = 7
METADATA = ModelMetadata(
    "fake",
    (TensorSpec("x", "FP32", (-1, 4)),),
    (TensorSpec("y", "FP32", (-1, 4)), TensorSpec("n", "INT64", (1,))),
    any_input_name=True,
    batch_dimension=True,
)


class Here:
    """Serves one model, `m`, also as `alias`: twice its input, and how many rows that has."""

    def __init__(self) -> None:
        self.pins = self.runs = 0
        self.loaded, self.is_quick, self.shares_runs = True, True, False
        self.shared: list[int] = []
        """How many requests were handed over together."""
        self.error: Exception | None = None
        self.copy = SimpleNamespace(pins=0, key=ModelKey("default", "m", GENERATION))
        self.checker = InputChecker(METADATA)
        self.plans: dict[tuple[str, int], Plan] = {}
        self.view = SimpleNamespace(revision=REVISION)
        self.now: Any = self
        """The copy that is here."""
        self.checks = 0

    def like(self) -> Any:
        """Another copy of the same model."""
        return SimpleNamespace(copy=self.copy, checker=self.checker, plans={}, let_go=self.let_go)

    def resolve(self, tenant: str, name: str, version: str = "") -> ModelRecord:
        if tenant != "default" or name not in ("m", "alias") or version not in ("", str(GENERATION)):
            raise UnknownModel(name)
        return ModelRecord(tenant, "m", ModelSpec(uri="file:///m"), GENERATION, 0.0, 0.0)

    def model(self, tenant: str, model_id: str) -> ModelRecord | None:
        try:
            return None if model_id == "alias" else self.resolve(tenant, model_id)
        except UnknownModel:
            return None

    def registered(self, record: ModelRecord) -> ModelRecord:
        return record

    def current(self, record: ModelRecord) -> ModelRecord:
        return record

    def hit(self, record: ModelRecord, key: ModelKey | None = None) -> Any:
        self.pins += self.loaded
        return self.now if self.loaded else None

    def let_go(self) -> None:
        self.pins -= 1

    def run(self, inputs: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, Any]:
        self.runs += 1
        if self.error is not None:
            raise self.error
        (x,) = inputs.values()
        made = {"y": x * 2, "n": np.array([len(x)], np.int64)}
        return {name: made[name] for name in outputs or made}

    def infer_now(self, record: Any, resident: Any, inputs: Any, outputs: Any, size_bytes: int) -> Any:
        return self.run(inputs, outputs) if self.is_quick else None

    def gathers(self, resident: Any) -> bool:
        return self.shares_runs

    def runs_now(self, resident: Any, size_bytes: int) -> bool:
        return self.is_quick

    def infer_together_now(self, record: Any, resident: Any, requests: Any) -> list[Any]:
        self.shared.append(len(requests))
        answers: list[Any] = []
        for request in requests:
            try:
                answers.append(self.run(request.inputs, request.outputs))
            except Exception as error:
                answers.append(error)
        return answers

    async def infer(
        self, record: Any, resident: Any, deadline_s: Any, decode: Callable[[], Awaitable[Tensors]], _: float
    ):
        tensors = await decode()
        self.checks += 1
        inputs = self.checker.check(tensors.inputs, tensors.datatypes)
        self.let_go()
        return Answer(self.run(inputs, tensors.outputs), tensors.outputs, record, cold=False)

    async def infer_here(self, record: Any, resident: Any, tensors: Tensors, deadline_s: Any) -> dict[str, Any]:
        assert tensors.checked
        self.let_go()
        return self.run(tensors.inputs, tensors.outputs)


class Elsewhere:
    """A router that sends requests on, and what it was given."""

    def __init__(self) -> None:
        self.sent: list[Call] = []
        self.cancelled = 0

    def forward_now(
        self, call: Call, kind: object, tenant: str, record: ModelRecord, heard: Callable[[Any], None]
    ) -> Any:
        assert (tenant, record.id) == ("default", "m")
        self.sent.append(call)
        self.heard = heard
        return self.cancel

    def cancel(self) -> None:
        self.cancelled += 1


KEY = "this pod's own"


async def answer_of(handler: Any, asked: Call) -> Any:
    """What comes of a call that is answered later."""
    assert callable(handler)
    return await handler(asked)


@pytest.fixture
def here() -> Here:
    return Here()


def quick_of(here: Here, unready: str = "", router: Any = None) -> QuickInference:
    serving: Any = here
    registry: Any = here
    v2 = V2Endpoint(serving, Access(KEY), lambda: "")
    return QuickInference(serving, Access(KEY), registry, lambda: unready, v2.model_infer, router)


async def never_called(_: Call) -> bytes:
    raise AssertionError("V2 has nothing to do with it")


def call(body: bytes, metadata: Metadata = ()) -> Call:
    return Call(MODEL_INFER.path, body, metadata)


def forwarded(generation: int = GENERATION) -> Metadata:
    hop = encode_hop(Hop("p1", "m", generation, REVISION, load=False))
    return ((FORWARD_METADATA, hop), (PEER_KEY_METADATA, KEY))


@pytest.mark.parametrize(
    "requests",
    [
        [encode_request("m", {"x": ROW}), encode_request("m", {"x": ROW + 1}), encode_request("m", {"x": ROW})],
        [encode_request("m", {"x": ROW}, request_id=f"id-{number}") for number in range(3)],
        [encode_request(name, {"x": ROW}) for name in ("m", "alias", "m")],
        [encode_request("m", {"x": np.repeat(ROW, rows, axis=0)}) for rows in (1, 2, 1, 3)],
        [encode_request("m", {"x": ROW}, outputs) for outputs in (["n", "y"], ["y"], ["n"], ["n", "y"])],
        [encode_request("m", {"x": ROW}, model_version=str(GENERATION))],
        [encode_request("m", {"my own name for it": ROW})],
        [encode_request("m", {"x": ROW.astype(dtype)}) for dtype in (np.float64, np.int32, np.float64)],
    ],
)
async def test_the_answer_is_the_one_that_v2_gives_to_the_byte(here: Here, requests: list[bytes]):
    quick = quick_of(here)
    serving: Any = here
    v2 = V2Endpoint(serving, Access(), lambda: "")
    for body in (*requests, *requests):
        (answer,) = quick.answer([call(body)])
        assert answer == await v2.model_infer(call(body))
    assert here.pins == 0


async def test_requests_that_arrive_together_for_one_copy_are_handed_over_together_and_answered_in_their_order(
    here: Here,
):
    here.shares_runs = True
    serving: Any = here
    v2 = V2Endpoint(serving, Access(), lambda: "")
    names = ["nobody", *["m", "alias"] * (TOGETHER_MIN // 2)]
    calls = [call(encode_request(name, {"x": ROW + at}, request_id=str(at))) for at, name in enumerate(names)]
    answers = quick_of(here).answer(calls)
    assert here.shared == [TOGETHER_MIN]
    assert answers[0] is None
    for answer, asked in zip(answers[1:], calls[1:], strict=True):
        assert answer == await v2.model_infer(asked)
    assert here.pins == 0
    here.is_quick = False
    left, *later = quick_of(here).answer(calls)
    assert left is None
    assert here.pins == 0
    assert [await answer_of(handler, asked) for handler, asked in zip(later, calls[1:], strict=True)] == answers[1:]
    here.is_quick, here.error = True, ModelRaised("division by zero")
    assert [type(answer) for answer in quick_of(here).answer(calls[1:])] == [TransportError] * TOGETHER_MIN
    assert here.pins == 0


async def test_a_forwarded_request_is_answered_even_while_the_pod_drains(here: Here):
    body = encode_request("any name", {"x": ROW})
    assert isinstance(quick_of(here, unready="draining").answer([call(body, forwarded())])[0], bytes)


@pytest.mark.parametrize("shown", [(), ((PEER_KEY_METADATA, "guessed"),)])
async def test_a_client_that_says_it_forwards_is_answered_what_it_asked_for(here: Here, shown: Metadata):
    quick = quick_of(here)
    hop, _ = forwarded()
    for claimed in (hop, (FORWARD_METADATA, "no hop")):
        assert quick.answer([call(encode_request("nobody", {"x": ROW}), (claimed, *shown))]) == [None]
        assert isinstance(quick.answer([call(encode_request("m", {"x": ROW}), (claimed, *shown))])[0], bytes)


def test_what_is_long_to_read_and_has_no_pattern_is_not_read_on_the_loop(here: Here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mesh.plans.decode_request", None)
    texts = np.array([["x" * 100] * 4] * 1000, object)
    typed = ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=[1000, 4]).contents.fp32_contents.extend([1.0] * 4000)
    named = [encode_request("m", {f"{number:01000d}": ROW for number in range(5)})]
    for body in (encode_request("m", {"x": texts}), typed.SerializeToString(), *named):
        assert quick_of(here).answer([call(body)]) == [None]
    assert here.pins == 0


TYPED = ModelInferRequest(model_name="m")
TYPED.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])


@pytest.mark.parametrize(
    ("body", "metadata"),
    [
        (encode_request("nobody", {"x": ROW}), ()),
        (encode_request("", {"x": ROW}), ()),
        (encode_request("m", {"x": ROW}, model_version="1"), ()),
        (encode_request("m", {"x": np.zeros((1, 5), np.float32)}), ()),
        (encode_request("m", {"x": np.array([["a"] * 4], object)}), ()),
        (encode_request("m", {"x": ROW}, ["no such output"]), ()),
        (encode_request("m", {"x": np.zeros((PATTERN_BYTES_MAX // 16, 4), np.float32)}), ()),
        (encode_request("m", {"x": ROW}) + b"\x0a\x05other", ()),
        (encode_request("m", {"x": ROW})[:-1], ()),
        (b"\x0a\x01\xff", ()),
        (b"\xff\xff", ()),
        (b"", ()),
        (TYPED.SerializeToString(), ()),
        (encode_request("m", {"x": ROW}), (("mm-model-id", "m"),)),
        (encode_request("m", {"x": ROW}), (("mm-vmodel-id-bin", b"m"),)),
        (encode_request("m", {"x": ROW}), (("hexcomb-tenant", "blue"),)),
        (encode_request("m", {"x": ROW}), (("hexcomb-tenant", "no such/tenant name"),)),
        (encode_request("m", {"x": ROW}), ((REVISION_METADATA, str(REVISION + 1)),)),
        (encode_request("m", {"x": ROW}), forwarded(GENERATION + 1)),
        (encode_request("m", {"x": ROW}), ((FORWARD_METADATA, "no hop"), (PEER_KEY_METADATA, KEY))),
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_v2_and_nothing_has_happened(
    here: Here, body: bytes, metadata: Metadata
):
    quick = quick_of(here)
    plain = call(encode_request("m", {"x": ROW}), ((REVISION_METADATA, str(REVISION)),))
    for _ in range(2):
        first, left, last = quick.answer([plain, call(body, metadata), plain])
        assert isinstance(first, bytes)
        assert first == last
        assert left is None
    assert here.runs == 4
    assert here.pins == 0


@pytest.mark.parametrize("why", ["not loaded", "draining", "busier than the other copies"])
def test_a_pod_that_is_not_to_answer_at_once_leaves_it_to_v2(here: Here, why: str):
    here.loaded = why != "not loaded"
    router: Any = SimpleNamespace(
        saturated=lambda record, in_flight: why == "busier than the other copies", forward_now=lambda *_: None
    )
    quick = quick_of(here, unready="draining" if why == "draining" else "", router=router)
    assert quick.answer([call(encode_request("m", {"x": ROW}))]) == [None]
    assert (here.runs, here.pins) == (0, 0)


@pytest.mark.parametrize("rows", [1, 20_000])
async def test_what_does_not_run_on_the_loop_is_answered_later_as_v2_would(here: Here, rows: int):
    body = call(encode_request("m", {"x": np.repeat(ROW, rows, axis=0)}, request_id="1"))
    serving: Any = here
    expected = await V2Endpoint(serving, Access(), lambda: "").model_infer(body)
    here.is_quick = False
    (handler,) = quick_of(here).answer([body])
    assert (here.runs, here.pins) == (1, 0)
    assert await answer_of(handler, body) == expected
    assert (here.runs, here.pins, here.checks) == (2, 0, 1)


@pytest.mark.parametrize("why", ["another copy", "draining"])
async def test_what_was_to_be_answered_later_goes_to_v2_when_the_copy_has_left_meanwhile(here: Here, why: str):
    body, reason = call(encode_request("m", {"x": ROW})), [""]
    here.is_quick = False
    serving: Any = here
    v2 = V2Endpoint(serving, Access(), lambda: "")
    quick = QuickInference(serving, Access(), serving, lambda: reason[0], v2.model_infer)
    (handler,) = quick.answer([body])
    if why == "draining":
        reason[0] = why
    else:
        here.now = here.like()
    assert await answer_of(handler, body) == await v2.model_infer(body)
    assert here.checks == 2, "V2 reads the message anew"
    assert here.pins == 0


async def test_an_error_of_a_later_run_has_its_own_status(here: Here):
    body = call(encode_request("m", {"x": ROW}))
    here.is_quick, here.error = False, ModelRaised("division by zero")
    (handler,) = quick_of(here).answer([body])
    with pytest.raises(TransportError, match="division by zero"):
        await answer_of(handler, body)
    here.error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        await answer_of(handler, body)
    assert here.pins == 0


def test_a_models_own_error_is_its_callers_alone(here: Here):
    quick = quick_of(here)
    body = call(encode_request("m", {"x": ROW}))
    here.error = ModelRaised("division by zero")
    (failure,) = quick.answer([body])
    assert isinstance(failure, TransportError)
    assert failure.status is StatusCode.INTERNAL
    here.error = RuntimeError("a defect")
    assert quick.answer([body]) == [here.error]
    here.error = None
    assert isinstance(quick.answer([body])[0], bytes)
    assert here.pins == 0


def test_long_metadata_are_read_with_each_call_and_not_kept(here: Here):
    quick = quick_of(here)
    body = encode_request("m", {"x": ROW})
    for number in range(3):
        trace = (("trace", f"{number:01000d}"), ("token", "x" * 500))
        assert isinstance(quick.answer([call(body, trace)])[0], bytes)
        assert isinstance(quick.answer([call(body, (("trace", "short"),))])[0], bytes)
    assert len(quick._askers) == 1


def test_clients_that_send_ever_new_kinds_of_requests_do_not_fill_the_memory(here: Here):
    quick = quick_of(here)
    for rows in range(1, 3 * PLANS_MAX):
        assert quick.answer([call(encode_request("m", {"x": np.repeat(ROW, rows, axis=0)}))]) != [None]
    assert len(here.plans) <= PLANS_MAX


@pytest.mark.parametrize("seen", ["9" * 5000, "٣", "-1", "soon"])
def test_a_revision_that_nobody_can_have_seen_costs_neither_the_call_nor_those_beside_it_their_answers(
    here: Here, seen: str
) -> None:
    body = encode_request("m", {"x": ROW})
    strange, plain = quick_of(here).answer([call(body, ((REVISION_METADATA, seen),)), call(body)])
    assert isinstance(plain, bytes)
    assert strange == plain or strange is None
    assert here.pins == 0


def test_a_call_that_meets_a_defect_costs_those_beside_it_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    defect = RuntimeError("a defect")

    def broken(tenant: str, name: str, version: str = "") -> ModelRecord:
        if name == "alias":
            raise defect
        return Here.resolve(here, tenant, name, version)

    monkeypatch.setattr(here, "resolve", broken)
    replies = quick_of(here).answer([call(encode_request(name, {"x": ROW})) for name in ("m", "alias", "m")])
    assert replies[1] is defect
    assert isinstance(replies[0], bytes)
    assert replies[0] == replies[2]
    assert here.pins == 0


def outcomes_of(reply: Any) -> list[Any]:
    """What becomes of a promise."""
    assert isinstance(reply, Later)
    outcomes: list[Any] = []
    reply.heard_by(outcomes.append)
    return outcomes


def test_a_request_for_a_model_elsewhere_is_sent_on_and_answered_with_what_comes(here: Here):
    here.loaded, router = False, Elsewhere()
    asked = call(encode_request("m", {"x": ROW}))
    (later,) = quick_of(here, router=router).answer([asked])
    outcomes = outcomes_of(later)
    assert router.sent == [asked]
    router.heard(b"there")
    assert outcomes == [b"there"]
    (left,) = quick_of(here, router=router).answer([asked])
    assert isinstance(left, Later)
    left.cancel()
    assert router.cancelled == 1


def test_the_answer_of_another_pod_says_that_this_one_drains_if_it_does_by_then(here: Here):
    here.loaded, router, unready = False, Elsewhere(), [""]
    serving: Any = here
    quick = QuickInference(serving, Access(KEY), serving, lambda: unready[0], never_called, router)
    (later,) = quick.answer([call(encode_request("m", {"x": ROW}))])
    outcomes = outcomes_of(later)
    unready[0] = "draining"
    router.heard(b"there")
    assert outcomes == [ReplyWithTrailers(b"there", (("hexcomb-draining", "1"),))]


async def test_after_a_first_try_that_failed_a_task_goes_on_and_its_errors_have_their_codes(here: Here):
    here.loaded, router, seen = False, Elsewhere(), []
    serving: Any = here

    async def go_on(first: FirstTry, asked: Call) -> bytes:
        seen.append((first, asked))
        raise UnknownModel("it has gone")

    quick = QuickInference(serving, Access(KEY), serving, lambda: "", never_called, router, go_on)
    asked = call(encode_request("m", {"x": ROW}))
    (later,) = quick.answer([asked])
    outcomes = outcomes_of(later)
    sent: Any = None
    first = FirstTry(sent, LineBroken("gone", sent=True))
    router.heard(first)
    with pytest.raises(TransportError, match="it has gone") as refused:
        await outcomes[0](asked)
    assert refused.value.status is StatusCode.NOT_FOUND
    assert seen == [(first, asked)]


@pytest.mark.parametrize(
    ("body", "metadata"),
    [
        (encode_request("m", {"x": ROW}), forwarded()),
        (encode_request("m", {"x": ROW}), (("grpc-previous-rpc-attempts", "1"),)),
        (encode_request("m", {"x": ROW}, model_version="3"), ()),
        (encode_request("m", {"x": ROW}) + encode_request("other", {}), ()),
        (encode_request("m", {"x": ROW}) + b"\x0b", ()),
        (encode_request("m", {"x": ROW}) + b"in shared memory", ()),
    ],
)
def test_what_is_no_plain_request_for_a_model_elsewhere_is_left_to_v2(here: Here, body: bytes, metadata: Metadata):
    here.loaded, router = False, Elsewhere()
    serving: Any = here
    quick = QuickInference(
        serving, Access(KEY), serving, lambda: "", never_called, router, names_regions=lambda body: b"memory" in body
    )
    assert quick.answer([call(body, metadata)]) == [None]
    assert router.sent == []


@pytest.mark.parametrize(
    "body",
    [
        encode_request("m", {"x": ROW}, request_id="\x00\x00").replace(b"\x00\x00", b"\xff\xff", 1),
        encode_request("m", {"x": ROW}, model_version="37"),
        encode_request("m", {"x": ROW}) + b"\x0a\x02no",
        encode_request("m", {"x": ROW}) + b"\x0b\x0b\x0b\x0b",
    ],
    ids=["an id that is no text", "a version", "another name", "no message"],
)
def test_what_is_as_long_as_requests_that_were_sent_on_and_is_not_like_them_is_left_to_v2(here: Here, body: bytes):
    here.loaded, router = False, Elsewhere()
    quick = quick_of(here, router=router)
    plain = call(encode_request("m", {"x": ROW}, request_id="ab"))
    assert len(plain.body) == len(body)
    for _ in range(2):
        (sent, left) = quick.answer([plain, call(body)])
        assert isinstance(sent, Later)
        assert left is None
    assert len(router.sent) == 2


def test_what_a_name_means_is_looked_up_anew_when_the_registry_has_changed(here: Here, monkeypatch: pytest.MonkeyPatch):
    quick, asked = quick_of(here), call(encode_request("m", {"x": ROW}))

    def unknown(tenant: str, name: str, version: str = "") -> ModelRecord:
        raise UnknownModel(name)

    assert isinstance(quick.answer([asked])[0], bytes)
    monkeypatch.setattr(here, "resolve", unknown)
    assert isinstance(quick.answer([asked])[0], bytes), "the view is the same"
    here.view = SimpleNamespace(revision=REVISION)
    assert quick.answer([asked]) == [None]
    assert here.pins == 0
