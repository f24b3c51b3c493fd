"""Many models at once: what a manifest or a directory is read as, and every bad line told."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from mesh.cli.sizes import parse_size, show_age, show_size
from mesh.client import BadManifest, registrations
from mesh.client.manifest import collect, make_entry


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
        8: "given in manifest.yaml:1 already",
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


HEADING = "name,uri,format,capacity-hint,priority,pinned,ttl_s,if-generation,load,labels.team,parameters.batch\n"


def test_a_table_has_a_row_for_each_model_and_a_column_for_each_label(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    rows = HEADING + "001,./churn.onnx,onnx,25MiB,5,TRUE,1.5,3,true,growth,8\n\n002,s3://b/f.ubj,,,,,,,,,\n"
    path.write_bytes(b"\xef\xbb\xbf" + rows.encode())  # as spreadsheets write it
    collected = collect(path)
    assert not collected.bad
    first, second = collected.entries
    assert (first.id, first.spec.uri) == ("001", (tmp_path / "churn.onnx").as_uri())
    assert (first.spec.capacity_hint_bytes, first.spec.priority, first.spec.pinned) == (25 * 1024 * 1024, 5, True)
    assert (first.spec.ttl_s, first.if_generation, first.load) == (1.5, 3, True)
    assert (dict(first.spec.labels), dict(first.spec.parameters)) == ({"team": "growth"}, {"batch": "8"})
    assert (second.id, second.spec.uri, second.spec.pinned) == ("002", "s3://b/f.ubj", False)
    assert (dict(second.spec.labels), second.if_generation) == ({}, None)


def test_lines_of_json_are_a_manifest_too(tmp_path: Path) -> None:
    path = tmp_path / "models.jsonl"
    path.write_text(
        '{"name": "a", "uri": "file:///a.onnx", "labels": {"team": "x"}}\n\n{"name": "b", "uri": "b.ubj"}\n'
    )
    first, second = collect(path).entries
    assert (first.id, dict(first.spec.labels)) == ("a", {"team": "x"})
    assert second.spec.uri == (tmp_path / "b.ubj").as_uri()


@pytest.mark.parametrize(
    ("name", "text", "bad"),
    [
        ("m.csv", "name,uri,priority\na,u://a,high\nb,u://b\nc,u://c,1\nc,u://c,1\n", {
            "m.csv:2": "priority is 'high'; it must be a number",
            "m.csv:3": "2 cells stand below 3 columns",
            "m.csv:5": "name 'c' was given in m.csv:4 already",
        }),
        ("m.csv", "name,uri,pinned,colour\na,u://a,1,\nb,u://b,,blue\n,u://c,,\n", {
            "m.csv:2": "pinned is '1'; it must be true or false",
            "m.csv:3": "field 'colour' is not known",
            "m.csv:4": "name is missing",
        }),
        ("m.csv", "name,uri,labels\na,u://a,team=risk\n", {
            "m.csv:2": "labels is 'team=risk'; write a column for each, for instance labels.team",
        }),
        ("m.jsonl", '{"name": "a", "uri": "u://a"}\n[1]\n{"name": \n"b"\n', {
            "m.jsonl:2": "expected a model's fields, found list",
            "m.jsonl:3": "not a line of JSON",
            "m.jsonl:4": "expected a model's fields, found str",
        }),
        ("m.jsonl", "[" * 100_000, {"m.jsonl:1": "not a line of JSON"}),
    ],
)  # fmt: skip
def test_every_bad_row_is_told_with_its_line(tmp_path: Path, name: str, text: str, bad: dict[str, str]) -> None:
    (tmp_path / name).write_text(text)
    found = {entry.origin: entry.message for entry in collect(tmp_path / name).bad}
    assert found.keys() == bad.keys()
    for origin, message in bad.items():
        assert message in found[origin]


@pytest.mark.parametrize("text", ["", "uri\nu://a\n", "name,name\na,b\n", 'name,uri\n"a,u://a\n', 'name,uri\na,"u"x\n'])
def test_what_is_no_table_of_models_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"must name the columns|is not CSV: line"):
        collect(path)


def test_registrations_are_ready_to_be_sent_or_all_bad_ones_are_told(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    path.write_text("name,uri,load,if-generation\na,u://a,true,2\n")
    (entry,) = registrations(path)
    assert (entry.id, entry.spec.uri, entry.load_now, entry.if_generation) == ("a", "u://a", True, 2)
    path.write_text("name,uri,priority\na,u://a,x\nb,u://b,y\nc,u://c,1\n")
    with pytest.raises(BadManifest, match=r"models.csv:2: priority is 'x'; it must be a number, and 1 more") as failure:
        registrations(str(path))
    assert [bad.origin for bad in failure.value.bad] == ["models.csv:2", "models.csv:3"]
    assert pickle.loads(pickle.dumps(failure.value)).bad == failure.value.bad  # noqa: S301
