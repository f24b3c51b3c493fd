"""Freed memory returns, and a measured growth is believed only where it can be true."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_adapters.base import Size
from runtime_adapters.devices import cpu, cuda_devices, visible_ordinals
from runtime_adapters.fake import FakeSpec, write_fake_artifact
from runtime_adapters.memory import MemoryProbe, anonymous_bytes, corrected_size, private_dirty_bytes, resident_bytes

MB = 1_000_000


@pytest.mark.parametrize(
    ("own", "grown_bytes", "corrected_bytes"),
    [
        (100 * MB, 120 * MB, 100 * MB),  # they agree: the rest is noise
        (100 * MB, 140 * MB, 140 * MB),
        (100 * MB, 70 * MB, 70 * MB),
        (100 * MB, 250 * MB, 100 * MB),  # something else grew
        (100 * MB, 10 * MB, 100 * MB),  # something else shrank
        (100 * MB, None, 100 * MB),  # another load ran beside
        (1 * MB, 2 * MB, 1 * MB),  # too small to see
        (7 * MB, 9 * MB, 7 * MB),  # so much grows and shrinks in a pod beside any load
        (7 * MB, 12 * MB, 12 * MB),
    ],
)
def test_a_measurement_is_believed_only_where_it_is_plausible(
    own: int, grown_bytes: int | None, corrected_bytes: int
) -> None:
    assert corrected_size(Size(own), grown_bytes).host_bytes == corrected_bytes


def test_mapped_and_device_bytes_are_not_corrected() -> None:
    assert corrected_size(Size(10 * MB, 5 * MB, 7 * MB), 14 * MB) == Size(14 * MB, 5 * MB, 7 * MB)


def test_a_probe_sees_what_grew_and_says_nothing_when_two_overlap() -> None:
    with MemoryProbe() as alone:
        block = bytearray(b"x") * (32 * MB)
    assert alone.grown_bytes == pytest.approx(len(block), rel=0.1)
    with MemoryProbe() as outer, MemoryProbe() as inner:
        pass
    assert outer.grown_bytes is None
    assert inner.grown_bytes is None


def test_the_process_s_memory_is_read_from_the_kernel() -> None:
    assert resident_bytes() >= anonymous_bytes() > MB
    assert private_dirty_bytes() > MB


def test_a_tuned_process_gives_freed_memory_back() -> None:
    program = """
import sys
from runtime_adapters.malloc import tune_allocator
from runtime_adapters.memory import anonymous_bytes
tuned = tune_allocator()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def allocate(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block
libc.free(allocate(24 << 20))  # untuned, glibc would now keep blocks of up to this size
before = anonymous_bytes()
blocks = [allocate(1 << 20) for _ in range(64)]
keep = allocate(1000)
for block in blocks:
    libc.free(ctypes.c_void_p(block))
print(tuned, anonymous_bytes() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    tuned, left_bytes = run.stdout.split()
    if tuned == "False":
        pytest.skip("this C library has no mallopt")
    assert int(left_bytes) < 4 << 20


def test_the_probe_command_measures_one_model_in_its_own_process(tmp_path: Path) -> None:
    artifact = write_fake_artifact(tmp_path / "model.json", FakeSpec(size_bytes=500, estimate_bytes=400))
    command = [
        sys.executable,
        "-m",
        "runtime_adapters.memory",
        "probe",
        "--format",
        "fake",
        "--artifact",
        str(artifact),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    report = json.loads(run.stdout)
    assert (report["format"], report["estimate_bytes"], report["size_bytes"]) == ("fake", 400, 500)
    assert report["load_ms"] >= 0


def test_the_cpu_has_memory_and_a_missing_gpu_has_a_reason() -> None:
    assert 0 < cpu().free_bytes <= cpu().total_bytes
    scan = cuda_devices()
    assert bool(scan.devices) != bool(scan.why_none)


@pytest.mark.parametrize(
    ("setting", "ordinals"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("1,7,0", [1]),  # CUDA stops at the first that does not exist
        ("GPU-b", [1]),
        ("GPU-", []),  # ambiguous
        ("0,0", [0]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(setting: str | None, ordinals: list[int]) -> None:
    assert visible_ordinals(setting, ["GPU-a1", "GPU-b2", "GPU-c3"]) == ordinals


def test_where_a_second_look_says_so_several_times_the_adapters_figure_is_believed_and_never_a_fraction() -> None:
    assert corrected_size(Size(30 * MB), 75 * MB).host_bytes == 30 * MB
    assert corrected_size(Size(30 * MB), 75 * MB, 8.0).host_bytes == 75 * MB
    assert corrected_size(Size(30 * MB), 300 * MB, 8.0).host_bytes == 30 * MB
    assert corrected_size(Size(30 * MB), 10 * MB, 8.0).host_bytes == 30 * MB
