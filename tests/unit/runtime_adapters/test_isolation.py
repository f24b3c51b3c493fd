"""A copy in a process of its own: what it answers, and what becomes of crashes, hangs, leaks and the pod's death."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_adapters.base import LoadOptions, Size
from runtime_adapters.errors import BadArtifact, BadInput, LoadCrashed, LoadFailed, ModelCrashed, ModelRaised
from runtime_adapters.isolation import Cancellation, IsolatedModel, estimate_isolated, load_isolated
from runtime_adapters.isolation_process import scratch_root

_HEAD = """
import os, signal, sys, time, threading, ctypes
import numpy as np
from runtime_adapters.custom import Model, TensorSpec

class M(Model):
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)
"""
_X = {"x": np.array([1, 2, 3], dtype=np.float32)}

Load = Callable[..., IsolatedModel]


@pytest.fixture
def load(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Load a model whose class body is given. All are unloaded, and no trace of any may be left."""
    scratches = tmp_path_factory.mktemp("scratches")
    monkeypatch.setattr(tempfile, "tempdir", str(scratches))
    root = scratch_root(str(scratches))
    loaded: list[IsolatedModel] = []
    before = _own_descriptors()

    def load_body(body: str, **settings: Any) -> IsolatedModel:
        (tmp_path / "model.py").write_text(_HEAD + textwrap.indent(textwrap.dedent(body), "    "))
        options = LoadOptions("m", trusted=settings.pop("trusted", True))
        settings = {"load_timeout_s": 60.0, "jailed": False, **settings}
        loaded.append(load_isolated("python", tmp_path, options, **settings))
        return loaded[-1]

    yield load_body
    for model in loaded:
        model.unload()
        assert not model.alive
    assert _own_descriptors() == before
    assert _children() == set()
    assert list(root.iterdir()) == []


def test_it_answers_what_the_model_answers(load: Load) -> None:
    model = load("def predict(self, inputs): return inputs['x'] * 2")
    model.warm_up()
    assert model.infer(_X)["y"].tolist() == [2, 4, 6]
    assert model.metadata.inputs[0].shape == (-1,)
    assert model.start_cost.process_s > 0
    assert model.start_cost.runtime_s > 0


def test_tensors_may_outgrow_the_segment_and_its_memory_is_given_back(load: Load) -> None:
    model = load("def predict(self, inputs): return inputs['x'] + 1")
    for elements in (1, 9_000_000, 3, 0):
        x = np.arange(elements, dtype=np.float32)
        assert np.array_equal(model.infer({"x": x})["y"], x + 1)
    assert model._link.requests.resident_bytes() <= 17 << 20
    assert model._link.responses.resident_bytes() <= 17 << 20


def test_a_request_over_the_limit_is_bad_input_and_an_answer_over_it_is_the_models_fault(load: Load) -> None:
    model = load(
        "def predict(self, inputs): return np.zeros(int(inputs['x'][0]), np.float32)", tensor_bytes_max=1 << 20
    )
    with pytest.raises(BadInput, match="1,048,576"):
        model.infer({"x": np.zeros(1 << 19, dtype=np.float32)})
    with pytest.raises(ModelRaised, match="1,048,576"):
        model.infer({"x": np.array([1 << 19], dtype=np.float32)})
    assert len(model.infer({"x": np.array([5], dtype=np.float32)})["y"]) == 5


def test_many_threads_may_ask_at_once(load: Load) -> None:
    model = load("def predict(self, inputs): return inputs['x'] * 2")

    def ask(number: int) -> bool:
        x = np.full(number % 7 + 1, number, dtype=np.float32)
        return np.array_equal(model.infer({"x": x})["y"], x * 2)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))


def test_a_model_that_raises_keeps_its_process(load: Load) -> None:
    model = load("def predict(self, inputs): return {'y': inputs['x'], 'z': 1 / (inputs['x'][0].item() - 1)}['y']")
    with pytest.raises(ModelRaised, match="ZeroDivisionError: float division by zero") as raised:
        model.infer(_X)
    assert "Traceback" not in str(raised.value)
    assert model.infer({"x": np.array([2], dtype=np.float32)})["y"].tolist() == [2]


@pytest.mark.parametrize(
    ("crash", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"signal 11 \(SIGSEGV\)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"signal 9 \(SIGKILL; often the kernel's out-of-memory killer\)"),
        ("os._exit(3)", "exited with status 3"),
        ("ctypes.string_at(0)", r"signal 11 \(SIGSEGV\)"),
    ],
)
def test_a_crash_is_told_with_how_the_process_ended(load: Load, crash: str, told: str) -> None:
    with pytest.raises(LoadCrashed, match=told):
        load(f"def load(self): {crash}")
    model = load(f"def predict(self, inputs): {crash}")
    for _ in range(2):
        with pytest.raises(ModelCrashed, match=told):
            model.infer(_X)
    assert not model.alive
    assert model.size() == Size(host_bytes=0)


def test_a_load_that_hangs_is_stopped_at_its_timeout_which_is_no_crash(load: Load) -> None:
    with pytest.raises(LoadFailed, match="did not load within 1 s") as raised:
        load("def load(self): threading.Event().wait()", load_timeout_s=1.0)
    assert not isinstance(raised.value, LoadCrashed)


def test_a_load_that_hangs_can_be_cancelled_which_is_no_crash(load: Load, tmp_path: Path) -> None:
    cancellation = Cancellation()
    started = tmp_path / "started"
    os.mkfifo(started)
    body = f"def load(self):\n    open({str(started)!r}, 'w').close()\n    threading.Event().wait()"
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, body, cancellation=cancellation)
        started.open().close()  # waits until load has begun
        cancellation.cancel()
        with pytest.raises(LoadFailed, match="its load was cancelled") as raised:
            loading.result(timeout=30)
    assert not isinstance(raised.value, LoadCrashed)


def test_a_load_that_was_cancelled_before_it_began_fails_at_once(load: Load) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(LoadFailed, match="cancelled"):
        load("def load(self): threading.Event().wait()", cancellation=cancellation)


def test_a_run_that_hangs_ends_the_copy_even_if_it_holds_the_gil(load: Load) -> None:
    hog = "def predict(self, inputs): ctypes.PyDLL(None).pause()"  # PyDLL keeps the GIL
    model = load(hog, infer_timeout_s=1.0)
    with pytest.raises(ModelCrashed, match="did not answer within 1 s"):
        model.infer(_X)
    assert not model.alive


def test_a_run_can_be_ended_from_another_thread_so_that_a_pod_that_stops_does_not_wait_for_it(load: Load) -> None:
    model = load("def predict(self, inputs): time.sleep(600)")
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(model.infer, _X)
        while not run.running():
            time.sleep(0.001)
        model.kill("the pod stops")
        with pytest.raises(ModelCrashed, match="the pod stops"):
            run.result(20)
    model.unload()


def test_what_a_model_started_ends_with_it(load: Load, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    model = load(
        f"""
        def load(self):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            open({str(pid_file)!r}, "w").write(str(pid))
        def predict(self, inputs):
            os._exit(1)
        """
    )
    grandchild = int(pid_file.read_text())
    with pytest.raises(ModelCrashed):
        model.infer(_X)
    assert _is_gone(grandchild)


def test_a_memory_limit_counts_what_the_model_takes(load: Load) -> None:
    hungry = "def load(self): self.kept = np.ones({0} << 20, np.uint8)"
    predict = "\ndef predict(self, inputs): return inputs['x']"
    load(hungry.format(50) + predict, memory_limit_bytes=100 << 20)
    with pytest.raises(LoadFailed, match="not enough memory"):
        load(hungry.format(150) + predict, memory_limit_bytes=100 << 20)


def test_size_follows_what_the_process_holds(load: Load) -> None:
    predict = "\ndef predict(self, inputs): return inputs['x']"
    small = load("def load(self): pass" + predict).size().host_bytes
    large = load("def load(self): self.kept = np.ones(64 << 20, np.uint8)" + predict).size().host_bytes
    assert (60 << 20) < large - small < (72 << 20)


def test_an_isolated_estimate_adds_the_process() -> None:
    assert estimate_isolated("torch", Size(1, device_bytes=2)).host_bytes > 500 << 20
    assert estimate_isolated("torch", Size(1, device_bytes=2)).device_bytes == 2
    assert estimate_isolated("python", Size(1)) == Size(1)


def test_a_model_sees_nothing_of_the_pods_environment(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do not tell")
    monkeypatch.setenv("HEXCOMB_STORE", "etcd://user:password@host")
    model = load("def predict(self, inputs): raise ValueError(sorted(os.environ))")
    with pytest.raises(ModelRaised) as raised:
        model.infer(_X)
    assert "PATH" in str(raised.value)
    assert "AWS" not in str(raised.value)
    assert "HEXCOMB" not in str(raised.value)


def test_what_a_model_prints_goes_to_the_log_bounded(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load("def load(self): print('loading ' + 'x' * 5000); [print(i) for i in range(1000)]").unload()
    lines = [record.getMessage() for record in caplog.records if "printed" in record.getMessage()]
    assert lines[0].startswith("model m printed: loading xxx")
    assert len(lines[0]) < 1100
    assert len(lines) <= 200
    assert any("prints too much" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "attack",
    [
        "ch.send({'outputs': [{'name': 'y', 'datatype': 'FP32', 'shape': [4], 'offset': 0, 'bytes': 1 << 40}]})",
        "ch.send({'outputs': [{'name': 'y', 'datatype': 'FP32', 'shape': [1 << 38], 'offset': 0, 'bytes': 1 << 40}]})",
        "ch.send({'outputs': [{'name': 'y', 'datatype': 'FP32', 'shape': [-1], 'offset': 0, 'bytes': -4}]})",
        "ch.send({'outputs': 7})",
        "ch.send({'error': {'kind': 'SystemExit', 'message': 'x'}})",
        "sock.sendall(b'\\xff\\xff\\xff\\xff')",
        "sock.sendall(b'\\x02\\x00\\x00\\x00{]')",
    ],
)
def test_a_hostile_process_costs_only_its_copy(load: Load, attack: str) -> None:
    model = load(
        f"""
        def predict(self, inputs):
            import socket
            from runtime_adapters.isolation_channel import Channel
            sock = socket.socket(fileno=int(sys.argv[1]))
            ch = Channel(sock)
            {attack}
            threading.Event().wait()
        """,
        infer_timeout_s=30.0,
    )
    with pytest.raises(ModelCrashed):
        model.infer(_X)
    assert not model.alive


def test_a_hostile_process_cannot_take_shared_pages_away(load: Load) -> None:
    model = load(
        """
        def predict(self, inputs):
            refused = []
            for fd in (int(sys.argv[2]), int(sys.argv[3])):
                try:
                    os.ftruncate(fd, 0)
                except PermissionError:
                    refused.append(fd)
            return np.float32(refused)
        """
    )
    model.infer(_X)  # now both segments have pages
    assert len(model.infer(_X)["y"]) == 2


def test_errors_of_the_adapter_arrive_as_they_are(load: Load) -> None:
    with pytest.raises(BadArtifact, match="cannot be imported: ModuleNotFoundError"):
        load("import no_such_module_anywhere")
    with pytest.raises(BadArtifact, match="outputs is empty"):
        load("outputs = ()")


def test_the_child_dies_with_the_pod_however_the_pod_dies(tmp_path: Path) -> None:
    """Even while the model holds the GIL, and though the thread that asked for the load has long ended."""
    (tmp_path / "model.py").write_text(_HEAD + "    def predict(self, inputs): ctypes.PyDLL(None).pause()\n")
    pod = f"""
import threading
from pathlib import Path
import numpy as np
from runtime_adapters.base import LoadOptions
from runtime_adapters.isolation import load_isolated
found = []
def load():
    found.append(load_isolated("python", Path({str(tmp_path)!r}), LoadOptions("m"), load_timeout_s=60, jailed=True))
loader = threading.Thread(target=load)
loader.start()
loader.join()
threading.Thread(target=lambda: found[0].infer({{"x": np.zeros(1, np.float32)}}), daemon=True).start()
print(found[0].pid, flush=True)
threading.Event().wait()
"""
    with subprocess.Popen([sys.executable, "-c", pod], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert not _is_gone(child, within_s=0.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _is_gone(child)


def test_scratch_of_dead_pods_is_removed_and_of_living_ones_is_not(tmp_path: Path) -> None:
    make = f"""
import sys, threading
from runtime_adapters.isolation_process import scratch_root
(scratch_root({str(tmp_path)!r}) / "file").write_text("x")
print("made", flush=True)
threading.Event().wait()
"""

    def made_by_others() -> int:
        return len(list(tmp_path.glob("*/file")))

    command = [sys.executable, "-c", make]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as dead,
        subprocess.Popen(command, stdout=subprocess.PIPE) as living,
    ):
        for process in (dead, living):
            assert process.stdout is not None
            process.stdout.readline()
        assert made_by_others() == 2
        dead.kill()
        dead.wait()
        scratch_root(str(tmp_path))
        assert made_by_others() == 1
        living.kill()


def test_a_copy_survives_the_thread_that_loaded_it(load: Load) -> None:
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(load, "def predict(self, inputs): return inputs['x']").result()
    assert model.infer(_X)["y"].tolist() == [1, 2, 3]


def test_loading_many_times_leaves_no_descriptor_thread_or_process(load: Load) -> None:
    load("def predict(self, inputs): return inputs['x']").unload()
    threads_before, descriptors_before = threading.active_count(), _own_descriptors()
    for _ in range(10):
        model = load("def predict(self, inputs): return inputs['x']")
        model.infer(_X)
        model.unload()
        model.unload()
    _wait_until(lambda: threading.active_count() <= threads_before)
    assert _own_descriptors() == descriptors_before


def _own_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _children() -> set[int]:
    """Processes that we started and that still exist, zombies included."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return {pid for pid in found if b"isolation_worker" in _command_of(pid) or _is_zombie(pid)}


def _command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    return False


def _is_gone(pid: int, within_s: float = 10.0) -> bool:
    """Ended; a zombie whose parent (the machine's init) has not looked yet counts as ended."""
    return _wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), within_s)


def _wait_until(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        threading.Event().wait(0.01)
    return True


def test_any_format_can_run_isolated_and_answers_the_same(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 5)).astype(np.float32)
    trained = xgboost.XGBRegressor(n_estimators=5, n_jobs=1).fit(features, features.sum(axis=1))
    trained.save_model(tmp_path / "model.ubj")
    for jailed in (False, True):
        model = load_isolated("xgboost", tmp_path / "model.ubj", LoadOptions("m"), jailed=jailed)
        try:
            (name,) = (spec.name for spec in model.metadata.inputs if not spec.optional)
            assert np.array_equal(model.infer({name: features})["predict"], trained.predict(features))
        finally:
            model.unload()


def test_a_format_that_nobody_knows_is_a_bad_artifact(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="nonsense"):
        load_isolated("nonsense", tmp_path, LoadOptions("m"), jailed=False)
