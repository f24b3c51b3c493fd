"""Packages for custom models, by the real pip from a directory of wheels; and what its failures mean."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime_adapters import package_install
from runtime_adapters.artifacts.download import FetchStopped, Stop
from runtime_adapters.artifacts.errors import ArtifactTooLarge, DiskFull, FetchFailed, FetchTimedOut
from runtime_adapters.errors import BadArtifact
from runtime_adapters.package_install import SITE, PackageSources, install, install_key
from runtime_adapters.requirements import Requirements, read_requirements
from tests.wheels import make_wheel

NEVER_S = 1e12


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    directory = tmp_path / "wheels and more"
    directory.mkdir()
    for version in ("1.0", "2.0"):
        make_wheel(directory, "hexgreet", version, {"hexgreet.py": f"VERSION = {version!r}\n"}, ["hexword"])
    make_wheel(directory, "hexword", "1.0", {"hexword.py": "WORD = 'hello'\n"})
    make_wheel(directory, "hexlarge", "1.0", {"hexlarge.py": f"TEXT = {os.urandom(100_000).hex()!r}\n"})
    return directory


def asked(directory: Path, text: str) -> Requirements:
    (directory / "requirements.txt").write_text(text)
    found = read_requirements(directory)
    assert found is not None
    return found


def filled(tmp_path: Path, text: str, sources: PackageSources, stop: Stop | None = None) -> Path:
    into = tmp_path / "into"
    into.mkdir()
    install(asked(tmp_path, text), sources, into, stop or Stop(NEVER_S))
    return into


def test_what_was_asked_for_is_there_with_what_it_needs_and_nothing_else(tmp_path: Path, wheels: Path) -> None:
    into = filled(tmp_path, "hexgreet<2", PackageSources(links=(str(wheels),)))
    code = "import hexgreet, hexword; print(hexgreet.VERSION, hexword.WORD)"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(into / SITE)}, capture_output=True, text=True
    )
    assert ran.stdout == "1.0 hello\n", ran.stderr
    assert sorted(path.name for path in into.iterdir()) == ["requirements.txt", SITE]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hexgreet==3.0", "No matching distribution found for hexgreet==3.0"),
        ("hexgreet==1.0\nhexword==2.0", "No matching distribution"),
        (f"hexword==1.0 --hash=sha256:{'0' * 64}", "DO NOT MATCH THE HASHES"),
    ],
)
def test_what_cannot_be_installed_is_a_bad_artifact_with_the_end_of_pips_log(
    tmp_path: Path, wheels: Path, text: str, told: str
) -> None:
    with pytest.raises(BadArtifact, match=told):
        filled(tmp_path, text, PackageSources(links=(str(wheels),)))


def test_an_index_that_does_not_answer_is_tried_again_later_and_its_password_is_not_told(tmp_path: Path) -> None:
    index = "http://somebody:secret@127.0.0.1:1/simple"
    with pytest.raises(FetchFailed, match="pip ended with status 1") as failed:
        filled(tmp_path, "hexgreet", PackageSources(index))
    assert "secret" not in str(failed.value)
    one, other = (PackageSources(index.replace("secret", word)) for word in ("one", "other"))
    requirements = asked(tmp_path, "hexgreet")
    assert install_key(requirements, one) == install_key(requirements, other)


def test_too_many_bytes_are_refused(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(ArtifactTooLarge, match="packages_size_max"):
        filled(tmp_path, "hexlarge", PackageSources(links=(str(wheels),), bytes_max=50_000))


@pytest.mark.parametrize(("deadline_s", "error"), [(0.0, FetchTimedOut), (NEVER_S, FetchStopped)])
def test_it_ends_when_its_time_is_over_or_nobody_waits(
    tmp_path: Path, wheels: Path, deadline_s: float, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_install, "_LOOK_S", 0.001)
    wanted = threading.Event()
    if deadline_s:
        wanted.set()
    with pytest.raises(error):
        filled(tmp_path, "hexgreet", PackageSources(links=(str(wheels),)), Stop(deadline_s, wanted))


@pytest.mark.parametrize(
    ("printed", "kind"),
    [
        ("ERROR: No matching distribution found for a", BadArtifact),
        ("WARNING: Retrying (Retry(total=1...\nERROR: No matching distribution found for a", FetchFailed),
        ("ERROR: ResolutionImpossible: for help", BadArtifact),
        ("ERROR: Could not install: [Errno 28] No space left on device", DiskFull),
        ("pip crashed", FetchFailed),
    ],
)
def test_what_pip_prints_tells_whether_it_may_pass(printed: str, kind: type[Exception]) -> None:
    assert type(package_install._failure(printed, 1)) is kind


def test_no_password_of_what_pip_prints_is_told() -> None:
    printed = "Looking in links: https://me:one@a/w\nProxyError https://me:two@proxy:3128 for a@b.c https://c/d"
    told = str(package_install._failure(printed, 1))
    assert "one" not in told
    assert "two" not in told
    assert told.endswith("ProxyError https://****@proxy:3128 for a@b.c https://c/d")
