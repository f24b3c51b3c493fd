"""Formats are found by name or by content; a doubt is an error, never a guess."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime_adapters import registry
from runtime_adapters.base import RuntimeAdapter
from runtime_adapters.errors import BadArtifact
from runtime_adapters.fake import FakeAdapter, write_fake_artifact
from runtime_adapters.registry import adapter_for, adapters, detect_format


def test_every_adapter_answers_to_its_own_name() -> None:
    for name, adapter in adapters(include_fake=True).items():
        assert adapter.format == name


def test_the_fake_is_there_only_when_asked_for() -> None:
    assert "fake" not in adapters()
    assert adapter_for("fake", include_fake=True).format == "fake"


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadArtifact, match=r"'tensorflow' is not known; known formats are .*onnx"):
        adapter_for("tensorflow")


def test_asking_for_adapters_imports_no_framework() -> None:
    program = (
        "import sys; from runtime_adapters.registry import adapters; adapters(include_fake=True); "
        "heavy = {'onnxruntime', 'onnx', 'torch', 'xgboost', 'lightgbm', 'sklearn', 'skops', 'scipy'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, f"imported: {run.stderr}"


def test_the_one_fitting_format_is_detected(tmp_path: Path) -> None:
    artifact = write_fake_artifact(tmp_path / "model.json")
    assert detect_format(artifact, include_fake=True) == "fake"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "nothing is there"),
        (lambda path: path.write_bytes(b""), "found an empty file"),
        (lambda path: path.write_bytes(b"GIF89a"), "found a file of 6 bytes that begins with b'GIF89a'"),
        (lambda path: path.mkdir(), "found an empty directory"),
        (
            lambda path: [path.mkdir()] + [(path / f"part{n}").write_bytes(b"") for n in range(7)],
            "found a directory with part0, part1, part2, part3, part4 and 2 more",
        ),
    ],
)
def test_what_fits_nothing_is_refused_with_what_was_seen(tmp_path: Path, make: object, said: str) -> None:
    artifact = tmp_path / "thing"
    make(artifact)  # type: ignore[operator]
    with pytest.raises(BadArtifact, match=said):
        detect_format(artifact)


def test_two_fitting_formats_are_an_error_that_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Twin(FakeAdapter):
        format = "twin"

    both: dict[str, RuntimeAdapter] = {"fake": FakeAdapter(), "twin": Twin()}
    monkeypatch.setattr(registry, "adapters", lambda **_: both)
    with pytest.raises(BadArtifact, match="fits 2 formats: fake and twin; name the right one"):
        detect_format(write_fake_artifact(tmp_path / "model.json"))
