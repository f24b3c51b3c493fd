"""What a requirements file may say, and what of it the pod has already."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from runtime_adapters.errors import BadArtifact
from runtime_adapters.requirements import FILE_BYTES_MAX, Requirements, missing_here, read_requirements

HASH = f"sha256:{'0' * 64}"


def read(directory: Path, text: str) -> Requirements | None:
    (directory / "requirements.txt").write_text(text)
    return read_requirements(directory)


def test_names_versions_markers_and_hashes_are_read(tmp_path: Path) -> None:
    text = f"""
    # what it needs
    one==1.0 \\
        --hash={HASH} \\
        --hash={HASH.replace("0", "1")}
    two[fast] >= 2, <3   # not the new one
    three; python_version < "3"
    """
    found = read(tmp_path, text)
    assert found is not None
    assert [str(each) for each in found.parsed] == ["one==1.0", "two[fast]<3,>=2"]
    assert found.lines[0] == f"one==1.0 --hash={HASH} --hash={HASH.replace('0', '1')}"
    assert found.hashed


@pytest.mark.parametrize("text", [None, "", "# nothing\n\n", 'old; python_version < "3"'])
def test_a_file_that_asks_for_nothing_is_none(tmp_path: Path, text: str | None) -> None:
    assert (read_requirements(tmp_path) if text is None else read(tmp_path, text)) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("good\n--index-url https://elsewhere/simple", "line 2: '--index-url"),
        ("-e .", "line 1"),
        ("-r others.txt", "line 1"),
        ("./a.whl", "line 1"),
        ("a @ https://elsewhere/a.whl", "a is asked for by a URL"),
        ("a @ file:///etc/passwd", "by a URL"),
        ("git+https://elsewhere/a", "line 1"),
        ("a==1 --hash=md5:00", "line 1"),
        ("a==1 --config-settings=x", "line 1"),
        ("a==1 \\\n--index-url=x", "line 1"),
        ("a" * (FILE_BYTES_MAX + 1), "allowed are"),
    ],
)
def test_where_packages_come_from_is_not_the_files_to_say(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadArtifact, match=r"requirements\.txt") as refused:
        read(tmp_path, text)
    assert told in str(refused.value)


def test_what_the_pod_has_is_not_missing_unless_it_is_asked_for_by_its_hash(tmp_path: Path) -> None:
    def version_of(name: str) -> str:
        if name != "here":
            raise PackageNotFoundError(name)
        return "1.5"

    def missing(text: str) -> list[str]:
        found = read(tmp_path, text)
        assert found is not None
        return [each.name for each in missing_here(found, version_of)]

    assert missing("here") == []
    assert missing("here>=1.5\naway") == ["away"]
    assert missing("here>=2") == ["here"]
    assert missing("here[more]") == ["here"]
    assert missing(f"here==1.5 --hash={HASH}") == ["here"]


def test_equal_requirements_have_one_name_whatever_their_order(tmp_path: Path) -> None:
    one, other, third = read(tmp_path, "a==1\nb"), read(tmp_path, "# again\nb\na == 1"), read(tmp_path, "a==2\nb")
    assert one is not None
    assert other is not None
    assert third is not None
    assert one.digest("3.11") == other.digest("3.11")
    assert len({one.digest("3.11"), one.digest("3.12"), third.digest("3.11")}) == 3
