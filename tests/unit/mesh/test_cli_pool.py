"""`pods`, `explain`, `top` and `aliases`: what is asked, what is shown, and which exit code says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mesh.cli import aliases as aliases_command
from mesh.cli import explain as explain_command
from mesh.cli import models as models_command
from mesh.cli import pods as pods_command
from mesh.cli import top as top_command
from mesh.cli.main import run
from mesh.cli.pod_tables import pod_row, remarks, show_rate
from mesh.cli.top_figures import headline, look, model_row
from mesh.cli.top_figures import pod_row as top_row
from mesh.client import HexcombError, NotFound, Unavailable
from mesh.transport.base import StatusCode
from mesh.wire.generated import hexcomb_pb2

GIB = 2**30


def pod(name: str, **fields: Any) -> hexcomb_pb2.PodDescription:
    tier = hexcomb_pb2.TierStatus(tier="device", device="cpu", capacity_bytes=GIB, resident_bytes=GIB // 2)
    defaults: dict[str, Any] = {
        "ready": True, "reachable": True, "tiers": [tier], "version": "1.2", "zone": "z", "started_at_ms": 5,
        "models_registered": 9,
    }  # fmt: skip
    return hexcomb_pb2.PodDescription(pod=name, **(defaults | fields))


def busy(model: str, rate: float, **fields: Any) -> hexcomb_pb2.BusyModel:
    return hexcomb_pb2.BusyModel(tenant="default", id=model, requests_per_s=rate, run_s=0.01, **fields)


@dataclass
class Server:
    """Answers as a client would be answered. A list of pods for each look, the last one again and again."""

    looks: list[list[hexcomb_pb2.PodDescription] | HexcombError] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    explanation: hexcomb_pb2.Explanation = field(default_factory=hexcomb_pb2.Explanation)
    aliases: dict[str, hexcomb_pb2.AliasDescription] = field(default_factory=dict)
    put: list[tuple[Any, ...]] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def pod_status(self, wanted: str = "") -> list[hexcomb_pb2.PodDescription]:
        found = self.looks[0] if len(self.looks) == 1 else self.looks.pop(0)
        if isinstance(found, HexcombError):
            raise found
        return [each for each in found if wanted in ("", each.pod)]

    def drain_pod(self, name: str) -> bool:
        self.drained.append(name)
        return len(self.drained) > 1

    def explain(self, name: str) -> hexcomb_pb2.Explanation:
        return self.explanation

    def release(self, name: str) -> hexcomb_pb2.ModelDescription:
        self.released.append(name)
        return hexcomb_pb2.ModelDescription(id=name, state=hexcomb_pb2.NOT_LOADED)

    def list_aliases(self, prefix: str) -> Iterator[hexcomb_pb2.AliasDescription]:
        yield from (alias for name, alias in sorted(self.aliases.items()) if name.startswith(prefix))

    def put_alias(self, name: str, target: str, weights: dict[str, int], **fields: Any) -> Any:
        self.put.append((name, target, weights, fields))
        active = target or max(weights, key=lambda model: weights[model])
        return hexcomb_pb2.AliasDescription(
            id=name, active=active, target=active, weights=weights, active_state=hexcomb_pb2.LOADED
        )

    def call(self, operation: Any) -> hexcomb_pb2.DeleteAliasResponse:
        request = hexcomb_pb2.DeleteAliasRequest.FromString(operation.body)
        return hexcomb_pb2.DeleteAliasResponse(existed=self.aliases.pop(request.id, None) is not None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    @contextlib.contextmanager
    def connected(target: Any, hint: str = "") -> Iterator[Server]:
        server.hints.append(f"{target.endpoint} {target.as_json}")
        yield server

    for module in (pods_command, explain_command, top_command, aliases_command, models_command):
        monkeypatch.setattr(module, "connected", connected)
    monkeypatch.setattr(pods_command, "_POLL_S", 0.0)
    return server


# pods -----------------------------------------------------------------------------------------------------------------


def test_the_pods_of_a_pool_are_a_table_with_what_is_wrong_below(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.looks = [
        [
            pod("b", draining=True, ready=False),
            pod("a", leader=True, requests_per_s=12.4, models_resident=3, notices=["the store was wiped"]),
            pod("c", reachable=False, why_unreachable="it does not answer pod a"),
            pod("d", ready=False, why_unready="cannot load what others can", notices=["the store was wiped"]),
            pod("e", why_unreachable="it answers far more slowly than usual", store_away_since_ms=1),
        ]
    ]
    assert run(["pods"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows[:6]] == ["pod", "a", "b", "c", "d", "e"]
    assert "ready, leader" in out
    assert "draining" in out
    assert "c is unreachable, shown as it was last: it does not answer pod a" in out
    assert "d is not ready: cannot load what others can" in out
    assert "e is avoided: it answers far more slowly than usual" in out
    assert "e: the store has not answered for" in out
    assert out.count("the store was wiped") == 1
    assert run(["pods", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pods"]) == 5


def test_one_pod_is_shown_with_all_there_is_to_know(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    why = "grpcio, as was asked for"
    server.looks = [[pod("a", hits=3, misses=1, labels=["gpu", "big"], transport=why), pod("b")]]
    assert run(["pods", "--pod", "a"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["used"] == "512.0 MiB (50%)"
    assert lines["hits"] == "3 of 4 (75.0%)"
    assert lines["labels"] == "gpu, big"
    assert lines["transport"] == why
    assert "oldest" not in lines


def test_a_pod_with_gpus_shows_each_of_them_and_what_is_parked(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    tiers = [
        hexcomb_pb2.TierStatus(tier="device", device=f"cuda:{index}", capacity_bytes=GIB, resident_bytes=index * GIB)
        for index in range(2)
    ]
    tiers.append(hexcomb_pb2.TierStatus(tier="host", capacity_bytes=2 * GIB, resident_bytes=GIB))
    there = pod("a", tiers=tiers, models_resident=4, models_parked=3, parkings=12)
    server.looks = [[there]]
    assert run(["pods", "--pod", "a"]) == 0
    out = capsys.readouterr().out
    assert "on cuda:0" in out
    assert "1.0 GiB of 1.0 GiB" in out
    assert "3 models, 1.0 GiB of 2.0 GiB of RAM; 12 since the start" in out
    assert "4 +3 parked" in pod_row(there)
    taken = look([there], [there], 1.0, 5, 0.0)
    assert "4 +3 parked" in top_row(taken.pods[0])


def test_a_drain_says_what_it_does(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.looks = [[pod("a"), pod("b")]]
    assert run(["pods", "drain", "b"]) == 0
    assert run(["pods", "drain", "b"]) == 0
    assert capsys.readouterr().out == "b: draining\nb: was draining already\n"
    assert server.drained == ["b", "b"]


def test_options_before_drain_mean_the_same_as_after_it(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.looks = [[pod("a")]]
    assert run(["pods", "--endpoint", "h:1,i:2", "drain", "a", "--json"]) == 0
    assert server.hints == ["h:1,i:2 True"]
    assert json.loads(capsys.readouterr().out) == {"pod": "a", "was_draining": False, "stopped": False}


@pytest.mark.parametrize(
    "looks",
    [
        [[pod("a"), pod("b")], [pod("a"), pod("b", draining=True)], [pod("a")]],
        [[pod("b"), pod("a")], [pod("b", draining=True)], Unavailable("cannot reach it", StatusCode.UNAVAILABLE)],
        [[pod("a"), pod("b", started_at_ms=1)], [pod("a"), pod("b", started_at_ms=2)]],
    ],
)
def test_waiting_for_a_drain_ends_when_the_pod_has_gone(
    server: Server, looks: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server.looks = looks
    assert run(["pods", "drain", "b", "--wait"]) == 0
    assert capsys.readouterr().out == "b: draining\nb: stopped\n"


def test_waiting_for_a_drain_that_does_not_end_fails(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    silent = pod("b", started_at_ms=2, reachable=False)
    server.looks = [[pod("a"), pod("b", draining=True, started_at_ms=1)], [pod("a"), silent]]
    assert run(["pods", "drain", "b", "--wait", "--wait-timeout", "0.01"]) == 1
    assert "b is still there after 0.01 s" in capsys.readouterr().err


def test_a_pool_that_cannot_be_reached_while_waiting_is_an_error_when_it_was_another_pod(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.looks = [[pod("a"), pod("b")], Unavailable("cannot reach it", StatusCode.UNAVAILABLE)]
    assert run(["pods", "drain", "b", "--wait"]) == 1
    assert "cannot reach it" in capsys.readouterr().err


def test_a_row_has_a_cell_for_every_heading_and_rates_are_short() -> None:
    from mesh.cli.pod_tables import POD_HEADINGS

    assert len(pod_row(pod("a"))) == len(POD_HEADINGS)
    assert [show_rate(rate) for rate in (0, 0.04, 3.21, 12.4, 1250)] == ["0", "0.0", "3.2", "12", "1,250"]
    assert remarks([pod("a")], 0.0) == []


# explain --------------------------------------------------------------------------------------------------------------


def test_an_explanation_is_sentences_and_three_tables(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    found = server.explanation
    found.model.MergeFrom(hexcomb_pb2.ModelDescription(id="m", generation=2, format="onnx", aliases=["alias"]))
    found.model.copies.add(pod="a", state=hexcomb_pb2.LOADED, generation=2, host_bytes=2048, measured=True)
    found.model.copies.add(pod="b", state=hexcomb_pb2.LOADING, generation=2)
    found.model.failures.add(pod="c", message="no memory")
    found.model.failures.add(pod="d", message="said already")
    found.summary, found.route, found.waits_for = (
        "Served by 1 pod (a).",
        "pod a answers; said already",
        "on pod b: room",
    )
    found.candidates.add(pod="e", chosen=True, estimate_s=0.25, reasons=["waits 0.00 s", "loads 0.25 s"])
    found.candidates.add(pod="c", reasons=["failed to load it"])
    found.history.add(at_ms=1_790_000_000_000, pod="a", text="evicted for another")
    found.unanswered.append("f: no answer within 2 s")
    assert run(["explain", "m"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("m: generation 2, onnx, tenant , alias alias\nServed by 1 pod (a).\n")
    for line in (
        "  route: pod a answers; said already",
        "  waits for: on pod b: room",
        "  failure on c: no memory",
        "no answer from f: no answer within 2 s",
    ):
        assert line in out.splitlines()
    assert "failure on d" not in out
    rows = [line.split() for line in out.splitlines()]
    assert any(row[:4] == ["a", "loaded", "2", "2.0"] for row in rows)
    assert any(row[:6] == ["e", "would", "be", "chosen", "0.25", "s"] for row in rows)
    assert any(row[:3] == ["c", "no", "-"] for row in rows)
    assert "evicted for another" in out
    assert run(["explain", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"][0]["chosen"] is True


def test_a_bare_explanation_has_no_empty_tables(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.explanation.summary = "Registered."
    server.explanation.model.id = "m"
    assert run(["explain", "m"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_model_is_released_by_name(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "release", "m"]) == 0
    assert (server.released, capsys.readouterr().out) == (["m"], "m: released\n")


# top ------------------------------------------------------------------------------------------------------------------


def test_what_happened_between_two_looks_is_a_difference_by_time() -> None:
    before = [pod("a", hits=100, misses=10, loads=5, evictions=1), pod("gone")]
    after = [
        pod("b"),
        pod("a", hits=190, misses=20, loads=9, evictions=1, requests_in_flight=3, models_loading=1, loads_queued=2),
    ]
    taken = look(before, after, 2.0, 10, 0.0)
    a, b = taken.pods
    assert (a.hit_fraction, a.loads_per_s, a.evictions_per_s, a.loading) == (0.9, 2.0, 0.0, 3)
    assert (b.hit_fraction, b.loads_per_s) == (None, 0.0), "it was not there before"
    assert headline(taken).startswith("2 of 2 pods ready · 9 models, 0 copies · 1.0 GiB of 2.0 GiB (50%)")
    assert [row[0] for row in map(top_row, taken.pods)] == ["a", "b"]


def test_a_pod_that_was_restarted_counts_from_then_on() -> None:
    taken = look([pod("a", hits=100)], [pod("a", hits=40, started_at_ms=6)], 1.0, 10, 0.0)
    assert taken.pods[0].hit_fraction is None


def test_the_hottest_models_are_summed_over_pods() -> None:
    pods = [
        pod("a", busy=[busy("m", 10, requests_in_flight=1.0, queue_delay_s=0.1), busy("n", 50)]),
        pod("b", busy=[busy("m", 60, requests_in_flight=2.0), busy("k", 1)]),
    ]
    taken = look([], pods, 1.0, 2, 0.0)
    m, n = taken.models
    assert (m.id, m.requests_per_s, m.requests_in_flight, m.queue_delay_s, m.pods) == ("m", 70, 3, 0.1, ("b", "a"))
    assert n.id == "n"
    assert model_row(m) == ["m", "70", "3.0", "100.0 ms", "10.0 ms", "2", "b, a"]


def test_top_prints_one_look_into_a_pipe(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.looks = [[pod("a", hits=1)], [pod("a", hits=5, busy=[busy("m", 4)])]]
    assert run(["top", "--once", "--interval", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 pods ready" in out
    assert any(line.split()[:2] == ["m", "4.0"] for line in out.splitlines())
    server.looks = [[pod("a")]]
    assert run(["top", "--once", "--json", "--interval", "0.2"]) == 0
    taken = json.loads(capsys.readouterr().out)
    assert (taken["pods"][0]["pod"], taken["models"], taken["remarks"]) == ("a", [], [])


# aliases --------------------------------------------------------------------------------------------------------------


def test_an_alias_is_set_split_listed_and_deleted(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["aliases", "set", "churn", "v1", "--owner", "me", "--expect", "v0", "--force", "--wait"]) == 0
    assert run(["aliases", "set", "churn", "--weights", "v1=90, v2=5,odd=name=5"]) == 0
    (plain, split) = server.put
    assert plain == ("churn", "v1", {}, {"owner": "me", "expected_target": "v0", "force": True, "wait": True})
    assert split[1:3] == ("", {"v1": 90, "v2": 5, "odd=name": 5})
    said = capsys.readouterr().out.splitlines()
    assert said == ["churn: v1, loaded", "churn: v1 90 %, odd=name 5 %, v2 5 %, loaded"]

    server.aliases["x"] = hexcomb_pb2.AliasDescription(
        id="x", active="v1", target="v2", target_state=hexcomb_pb2.LOADING, owner="me"
    )
    server.aliases["y"] = hexcomb_pb2.AliasDescription(id="y", active="v1", target="v2", failure="no such file")
    assert run(["aliases", "list"]) == 0
    out = capsys.readouterr().out
    assert "moves to v2, which is loading" in out
    assert "cannot move to v2: no such file" in out
    assert run(["aliases", "list", "--prefix", "y", "--json"]) == 0
    assert [alias["id"] for alias in json.loads(capsys.readouterr().out)["aliases"]] == ["y"]
    assert run(["aliases", "delete", "x"]) == 0
    assert run(["aliases", "delete", "x"]) == 0
    assert capsys.readouterr().out == "x: deleted\nx: there was no such alias\n"


def test_a_transition_that_failed_fails_the_command_that_waited(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck = hexcomb_pb2.AliasDescription(id="churn", active="v1", target="v2", failure="no such file")
    monkeypatch.setattr(server, "put_alias", lambda *args, **fields: stuck)
    assert run(["aliases", "set", "churn", "v2"]) == 0
    capsys.readouterr()
    assert run(["aliases", "set", "churn", "v2", "--wait"]) == 1
    captured = capsys.readouterr()
    assert "churn stays on v1: no such file" in captured.err
    assert "hexcomb explain v2" in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "churn"], "MODEL is missing"),
        (["set", "churn", "v3", "--weights", "v1=1"], "--weights gives v3 no share"),
        (["set", "churn", "--weights", "v1"], "'v1' is not MODEL=SHARE"),
        (["set", "churn", "--weights", "v1=-1"], "'v1=-1' is not MODEL=SHARE"),
        (["set", "churn", "--weights", "v1=1.5"], "'v1=1.5' is not MODEL=SHARE"),
        (["set", "churn", "--weights", "v1=1,v1=2"], "v1 is given twice"),
    ],
)
def test_wrong_usage_is_said_in_one_line(
    server: Server, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["aliases", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not server.put


def test_promotion_and_rollback_stand_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["aliases", "--help"]) == 0
    out = capsys.readouterr().out
    assert "promote" in out
    assert "roll back" in out


def test_a_pod_that_is_not_known_is_hinted_at_with_the_list_of_pods(capsys: pytest.CaptureFixture[str]) -> None:
    from mesh.cli.connection import Target, connected
    from mesh.cli.failure import Failure

    with pytest.raises(Failure) as failed, connected(Target("127.0.0.1:1,127.0.0.1:2", "", False, 5.0), "see pods"):
        raise NotFound("pod 'x' is not known", StatusCode.NOT_FOUND)
    assert failed.value.hint == "see pods"


@pytest.mark.parametrize("endpoint", ["nowhere", "127.0.0.1:1,nowhere", ",", "127.0.0.1:99999"])
def test_every_endpoint_of_a_list_must_be_one(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pods", "--endpoint", endpoint]) == 2
    assert "HOST:PORT" in capsys.readouterr().err
