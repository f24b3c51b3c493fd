"""`hexcomb models` and `pods`: what is sent, what is shown, and which exit code says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.cli import models as models_command
from mesh.cli import pods as pods_command
from mesh.cli.descriptions import model_row, to_json
from mesh.cli.main import run
from mesh.transport.base import StatusCode
from mesh.wire.generated import hexcomb_pb2


class _Server:
    """Remembers registrations as a client would be told of them."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.calls = 0

    def register_many(
        self, entries: Iterable[Any], on_progress: Callable[[int], None] | None = None, *, entries_per_call: int = 1000
    ) -> list[Any]:
        found = list(entries)
        for first in range(0, len(found), entries_per_call):
            self.calls += 1
            if on_progress is not None:
                on_progress(len(found[first : first + entries_per_call]))
        return [self._register(entry) for entry in found]

    def _register(self, entry: Any) -> Any:
        known = self.models.get(entry.id)
        if known is not None and known.spec != entry.spec and not entry.HasField("if_generation"):
            return hexcomb_pb2.RegistrationResult(
                id=entry.id, status_code=StatusCode.ALREADY_EXISTS, message="another spec is registered"
            )
        if known is not None:
            return hexcomb_pb2.RegistrationResult(id=entry.id, outcome=2, generation=1)
        self.models[entry.id] = hexcomb_pb2.ModelDescription(id=entry.id, spec=entry.spec, generation=1, state=1)
        return hexcomb_pb2.RegistrationResult(id=entry.id, outcome=1, generation=1)

    def list_models(self, prefix: str = "", labels: Any = None) -> Iterator[Any]:
        yield from (model for name, model in sorted(self.models.items()) if name.startswith(prefix))

    def describe(self, name: str) -> Any:
        return self.models[name]

    def set_pinned(self, name: str, pinned: bool) -> Any:
        self.models[name].spec.pinned = pinned
        return self.models[name]

    def unregister_many(self, names: Iterable[str]) -> list[Any]:
        return [
            hexcomb_pb2.UnregistrationResult(id=name, status_code=9, message="an alias points at it")
            if name == "held"
            else hexcomb_pb2.UnregistrationResult(id=name, existed=self.models.pop(name, None) is not None)
            for name in names
        ]

    def pod_status(self, pod: str = "") -> list[Any]:
        tier = hexcomb_pb2.TierStatus(tier="device", device="cpu", capacity_bytes=2**30, resident_bytes=2**29)
        return [hexcomb_pb2.PodDescription(pod="pod-1", ready=True, tiers=[tier], hits=7, version="0.1.0")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> _Server:
    server = _Server()

    @contextlib.contextmanager
    def connected(target: Any, hint: str = "") -> Iterator[_Server]:
        yield server

    monkeypatch.setattr(models_command, "connected", connected)
    monkeypatch.setattr(pods_command, "connected", connected)
    return server


def test_one_model_with_every_field(server: _Server, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "models register churn --uri s3://b/churn.onnx --format onnx --capacity-hint 25MiB --storage-key eu "
        f"--checksum sha256:{'a' * 64} --label team=growth --label tier=1 --priority 3 --pinned --isolation process "
        "--ttl-s 60 --load-timeout-s 5 --parameter batch=8"
    )
    assert run(arguments.split()) == 0
    assert capsys.readouterr().out == "churn: registered (generation 1)\n"
    spec = server.models["churn"].spec
    assert (spec.uri, spec.format, spec.storage_key) == ("s3://b/churn.onnx", "onnx", "eu")
    assert spec.capacity_hint_bytes == 25 * 1024 * 1024
    assert dict(spec.labels) == {"team": "growth", "tier": "1"}
    assert (spec.priority, spec.pinned, spec.isolation) == (3, True, "process")
    assert (spec.ttl_s, spec.load_timeout_s) == (60, 5)
    assert dict(spec.parameters) == {"batch": "8"}


def test_registering_twice_changes_nothing_and_another_spec_is_refused(
    server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "register", "a", "--uri", "file:///a"]) == 0
    assert run(["models", "register", "a", "--uri", "file:///a"]) == 0
    assert "already registered, unchanged" in capsys.readouterr().out
    assert run(["models", "register", "a", "--uri", "file:///b", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "ALREADY_EXISTS"
    assert "--if-generation" in captured.err
    assert run(["models", "register", "a", "--uri", "file:///b", "--if-generation", "1"]) == 0


def _manifest(tmp_path: Path, entries: list[dict[str, Any]]) -> str:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(entries))
    return str(path)


def test_a_manifest_is_registered_in_few_calls_and_summed_up(
    server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _manifest(tmp_path, [{"name": f"m{index}", "uri": f"file:///m{index}"} for index in range(450)])
    assert run(["models", "register", "--from", source]) == 0
    assert len(server.models) == 450
    assert server.calls == 3
    assert ["registered", "450"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert run(["models", "register", "--from", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] == 450


def test_one_refused_entry_fails_the_command_and_not_its_neighbours(
    server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "register", "b", "--uri", "file:///other"]) == 0
    source = _manifest(tmp_path, [{"name": name, "uri": f"file:///{name}"} for name in "abc"])
    capsys.readouterr()
    assert run(["models", "register", "--from", source]) == 1
    captured = capsys.readouterr()
    assert set(server.models) == {"a", "b", "c"}
    assert "b: another spec is registered" in captured.err
    assert ["failed", "1"] in [line.split() for line in captured.out.splitlines()]


def test_a_manifest_with_a_bad_entry_registers_nothing(
    server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _manifest(tmp_path, [{"name": "a", "uri": "file:///a"}, {"name": "b"}, {"uri": "file:///c"}])
    assert run(["models", "register", "--from", source]) == 2
    errors = capsys.readouterr().err
    assert "uri is missing" in errors
    assert "name is missing" in errors
    assert "nothing was registered" in errors
    assert not server.models
    assert run(["models", "register", "--from", source, "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["bad"]) == 2


def test_an_empty_directory_is_told(server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    assert run(["models", "register", "--from", str(tmp_path)]) == 1
    assert "nothing to register" in capsys.readouterr().err


def test_a_list_ends_at_its_limit_and_says_so(server: _Server, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(5):
        assert run(["models", "register", f"m{index}", "--uri", "file:///m"]) == 0
    capsys.readouterr()
    assert run(["models", "list", "--limit", "3"]) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["name", "m0", "m1", "m2"]
    assert "--all" in captured.err
    assert run(["models", "list", "--limit", "3", "--all", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed["models"]) == 5
    assert listed["more"] is False


def test_an_empty_list_says_what_to_do(server: _Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list"]) == 0
    assert "no models" in capsys.readouterr().err


def test_show_pin_and_unregister(server: _Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "register", "a", "--uri", "file:///a"]) == 0
    assert run(["models", "pin", "a"]) == 0
    assert run(["models", "show", "a"]) == 0
    shown = capsys.readouterr().out
    assert ["pinned", "yes"] in [line.split() for line in shown.splitlines()]
    assert run(["models", "show", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["pinned"] is True
    assert run(["models", "unregister", "a", "b", "held"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "a: unregistered\nb: was not registered\n"
    assert "held: an alias points at it" in captured.err


def test_pods_show_capacity_and_use(server: _Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pods"]) == 0
    out = capsys.readouterr().out
    assert "1.0 GiB" in out
    assert "512.0 MiB (50%)" in out
    assert run(["pods", "--json"]) == 0
    (pod,) = json.loads(capsys.readouterr().out)["pods"]
    assert pod["tiers"][0]["capacity_bytes"] == 2**30


def test_json_keeps_large_numbers_as_numbers_and_absent_fields_absent() -> None:
    model = hexcomb_pb2.ModelDescription(id="a", state=3, registered_at_ms=1_790_000_000_000)
    model.copies.add(pod="p", host_bytes=2**40)
    value = to_json(model)
    assert value["registered_at_ms"] == 1_790_000_000_000
    assert value["copies"][0]["host_bytes"] == 2**40
    assert value["state"] == "loaded"
    assert "failure" not in value
    assert "capacity_hint_bytes" not in to_json(hexcomb_pb2.ModelSpec())


def test_an_estimate_is_marked_as_one() -> None:
    model = hexcomb_pb2.ModelDescription(id="a", state=3, generation=1)
    copy = model.copies.add(pod="p", host_bytes=2048)
    assert model_row(model, 0)[4] == "~2.0 KiB"
    copy.measured = True
    assert model_row(model, 0)[4] == "2.0 KiB"
