"""Artifacts as directories that Triton, or MLServer, loads models from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh.runtimes.layouts import lay_out_for_mlserver, lay_out_for_triton, without_name
from runtime_adapters.errors import BadArtifact


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('name: "m"\nbackend: "python"\n', '\nbackend: "python"\n'),
        ('backend: "python"', 'backend: "python"'),
        (
            'input [{ name: "x" dims: [1] }]\nname : \'m\', platform: "p"',
            'input [{ name: "x" dims: [1] }]\n platform: "p"',
        ),
        ('# name: "no"\nparameters { key: "name: {" }\nname: "m"', '# name: "no"\nparameters { key: "name: {" }\n'),
        ('platform_name: "x"', 'platform_name: "x"'),
    ],
)
def test_only_the_models_own_name_is_taken_out_of_a_triton_configuration(config: str, expected: str) -> None:
    assert without_name(config) == expected


@pytest.mark.parametrize("config", ["a" * 1_000_000, '"' + '\\"' * 500_000])
def test_a_configuration_that_is_none_is_read_once(config: str) -> None:
    assert without_name(config) == config


def test_a_description_is_not_read_at_any_length(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    for name in ("config.pbtxt", "model-settings.json"):
        (artifact / name).write_text(" " * (1024 * 1024 + 1))
    with pytest.raises(BadArtifact, match="larger than"):
        lay_out_for_triton(artifact, "triton", {}, tmp_path / "a")
    with pytest.raises(BadArtifact, match="larger than"):
        lay_out_for_mlserver(artifact, None, {}, tmp_path / "b")


def test_a_triton_model_directory_is_linked_under_its_new_name(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    (artifact / "3").mkdir(parents=True)
    (artifact / "3" / "model.py").write_text("code")
    (artifact / "config.pbtxt").write_text('name: "other"\nbackend: "python"\n')
    into = tmp_path / "repository" / "m-1"
    lay_out_for_triton(artifact, "triton", {}, into)
    assert (into / "3" / "model.py").read_text() == "code"
    assert "other" not in (into / "config.pbtxt").read_text()


def test_a_single_file_becomes_version_1_under_the_name_that_triton_expects(tmp_path: Path) -> None:
    artifact = tmp_path / "net.xml"
    artifact.write_text("net")
    lay_out_for_triton(artifact, "openvino", {}, tmp_path / "a")
    assert (tmp_path / "a" / "1" / "model.xml").read_text() == "net"
    lay_out_for_triton(artifact, "mine", {"filename": "weights.bin", "backend": "mine"}, tmp_path / "b")
    assert (tmp_path / "b" / "1" / "weights.bin").read_text() == "net"
    assert (tmp_path / "b" / "config.pbtxt").read_text() == 'backend: "mine"\n'
    with pytest.raises(BadArtifact, match="filename"):
        lay_out_for_triton(artifact, "mine", {}, tmp_path / "c")
    with pytest.raises(BadArtifact, match="not a path"):
        lay_out_for_triton(artifact, "mine", {"filename": "../x"}, tmp_path / "d")


def test_mlserver_settings_keep_what_they_say_but_the_name_and_where_the_files_are(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    settings = {"name": "other", "implementation": "a.B", "parameters": {"uri": "./w.bin", "extra": {"x": 1}}}
    (artifact / "model-settings.json").write_text(json.dumps(settings))
    lay_out_for_mlserver(artifact, None, {}, tmp_path / "m-1")
    assert json.loads((tmp_path / "m-1" / "model-settings.json").read_text()) == {
        "name": "m-1",
        "implementation": "a.B",
        "parameters": {"uri": str(artifact / "w.bin"), "extra": {"x": 1}},
    }


def test_mlserver_settings_may_not_point_out_of_the_artifact(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "model-settings.json").write_text(json.dumps({"parameters": {"uri": "../secret"}}))
    with pytest.raises(BadArtifact, match="outside"):
        lay_out_for_mlserver(artifact, None, {}, tmp_path / "m-1")


def test_an_artifact_without_settings_needs_an_implementation_from_the_operator(tmp_path: Path) -> None:
    artifact = tmp_path / "model.joblib"
    artifact.write_text("x")
    lay_out_for_mlserver(artifact, "mlserver_sklearn.SKLearnModel", {}, tmp_path / "m-1")
    made = json.loads((tmp_path / "m-1" / "model-settings.json").read_text())
    assert made["implementation"] == "mlserver_sklearn.SKLearnModel"
    assert made["parameters"]["uri"] == str(artifact)
    with pytest.raises(BadArtifact, match="implementation"):
        lay_out_for_mlserver(artifact, None, {}, tmp_path / "m-2")
