"""Many models at once: what a manifest or a directory is read as, and every bad line told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh.cli.manifest import collect, make_entry
from mesh.cli.sizes import parse_size, show_age, show_size


def _manifest(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    return path


def test_a_manifest_has_the_flags_as_fields(tmp_path: Path) -> None:
    collected = collect(
        _manifest(
            tmp_path,
            """
models:
  - name: churn
    uri: ./churn.onnx
    format: onnx
    capacity-hint: 25MiB
    labels: {team: growth, tier: 1}
    priority: 5
    pinned: true
    ttl_s: 60
    load: true
    if-generation: 3
    parameters: {batch: 8}
  - {name: fraud, uri: "s3://bucket/fraud.ubj", storage-key: eu}
""",
        )
    )
    assert not collected.bad
    churn, fraud = collected.entries
    assert churn.spec.uri == (tmp_path / "churn.onnx").as_uri()
    assert churn.spec.capacity_hint_bytes == 25 * 1024 * 1024
    assert dict(churn.spec.labels) == {"team": "growth", "tier": "1"}
    assert dict(churn.spec.parameters) == {"batch": "8"}
    assert (churn.spec.priority, churn.spec.pinned, churn.spec.ttl_s) == (5, True, 60)
    assert (churn.load, churn.if_generation) == (True, 3)
    assert (fraud.spec.uri, fraud.spec.storage_key) == ("s3://bucket/fraud.ubj", "eu")


def test_json_is_a_manifest_too(tmp_path: Path) -> None:
    collected = collect(_manifest(tmp_path, json.dumps([{"name": "a", "uri": "file:///a.onnx"}])))
    assert [entry.id for entry in collected.entries] == ["a"]


def test_every_bad_entry_is_told_with_its_line(tmp_path: Path) -> None:
    collected = collect(
        _manifest(
            tmp_path,
            """- {name: good, uri: file:///a}
- {uri: file:///a}
- {name: b}
- {name: c, uri: file:///a, colour: blue}
- just text
- {name: d, uri: file:///a, capacity-hint: much}
- {name: e, uri: file:///a, isolation: maximum}
- {name: good, uri: file:///b}
- {name: f, uri: file:///a, if-generation: newest}
- {name: g, uri: file:///a, load: 7}
""",
        )
    )
    assert [entry.id for entry in collected.entries] == ["good"]
    told = {entry.origin: entry.message for entry in collected.bad}
    assert list(told) == [f"manifest.yaml:{line}" for line in range(2, 11)]
    for line, said in {
        2: "name is missing",
        3: "uri is missing",
        4: "'colour' is not known",
        5: "found str",
        6: "'much' is not a size",
        7: "isolation is 'maximum'",
        8: "given in line 1 already",
        9: "if-generation is 'newest'",
        10: "load is 7",
    }.items():
        assert said in told[f"manifest.yaml:{line}"]


@pytest.mark.parametrize("text", ["", "name: x", "models: 7", "'text'", "- {a: [", "\t- x: 1"])
def test_what_is_no_manifest_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.yaml"):
        collect(_manifest(tmp_path, text))


def test_a_manifest_runs_no_code(tmp_path: Path) -> None:
    collected = collect(_manifest(tmp_path, "- !!python/object/apply:os.system ['touch /tmp/owned']\n"))
    assert len(collected.bad) == 1


def test_a_directory_registers_what_it_recognises(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing to serve")
    (tmp_path / ".hidden").write_text("nor here")
    (tmp_path / "empty").mkdir()
    model = "tree\nversion=v4\nnum_class=1\n"
    (tmp_path / "ranker.txt").write_text(model)
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn" / "model.txt").write_text(model)
    (tmp_path / "churn" / "metrics.md").write_text("auc 0.9")
    collected = collect(tmp_path)
    assert {entry.id: entry.spec.format for entry in collected.entries} == {"churn": "lightgbm", "ranker": "lightgbm"}
    for entry in collected.entries:  # the directory itself where its format takes one, else the file in it
        assert entry.spec.uri.startswith((tmp_path / entry.id).as_uri())
    assert collected.unrecognised == ("empty", "notes.md")
    assert not collected.bad


def test_two_files_that_want_one_name_are_told(tmp_path: Path) -> None:
    model = "tree\nversion=v4\nnum_class=1\n"
    (tmp_path / "a.txt").write_text(model)
    (tmp_path / "a.model").write_text(model)
    collected = collect(tmp_path)
    assert len(collected.entries) == 1
    assert "is taken by" in collected.bad[0].message


def test_a_sub_directory_with_two_artifacts_is_told(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "both" / name).write_text("tree\nversion=v4\nnum_class=1\n")
    assert "2 artifacts in it" in collect(tmp_path).bad[0].message


def test_a_path_becomes_a_file_uri() -> None:
    assert make_entry({"name": "a", "uri": "m.onnx"}, Path("/models")).spec.uri == "file:///models/m.onnx"
    assert make_entry({"name": "a", "uri": "s3://b/m"}, Path("/models")).spec.uri == "s3://b/m"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("812", 812), ("1kb", 1000), ("1KiB", 1024), ("25MiB", 26_214_400), ("1.5 GiB", 1_610_612_736)],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 QiB", "1e9", "1,5MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_sizes_and_ages_are_shown() -> None:
    assert [show_size(size) for size in (0, 812, 2048, 26_214_400, 3 * 2**30, 5 * 2**40)] == [
        "0 B", "812 B", "2.0 KiB", "25.0 MiB", "3.0 GiB", "5.0 TiB",
    ]  # fmt: skip
    assert [show_age(age) for age in (0, 60, 600, 7200, 200_000)] == ["0 s", "60 s", "10 min", "2 h", "2 d"]
