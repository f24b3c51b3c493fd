"""Models of several tenants from a claim, a repository and a bucket, each with its tenant's own key, on a real pod."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesh.client.errors import HexcombError
from tests.contract.faulty_server import Served, faulty_server
from tests.contract.git_server import git_server

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod

SECRET = "s3cr3t-value-nobody-may-see"


def test_each_tenant_reads_with_its_own_keys_and_no_secret_is_logged(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    graph = files.scale(2.0)
    (tmp_path / "claims" / "team-a-models").mkdir(parents=True)
    shutil.copy(graph.path, tmp_path / "claims" / "team-a-models" / "m.onnx")
    with git_server(tmp_path / "repositories") as git, faulty_server() as bucket:
        git.commit("org/m", {"m.onnx": graph.path.read_bytes()})
        git.authorization = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        bucket.files["/models/m.onnx"] = Served(graph.path.read_bytes(), '"1"', "Sat, 21 Nov 2026 08:00:00 GMT")
        secret = {"AWS_ACCESS_KEY_ID": "KEY", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": bucket.base}
        config = {
            "team-a/claim": {"type": "pvc", "name": "team-a-models"},
            "team-a/git": {"type": "git", "url": f"http://127.0.0.1:{git.port}", "username": "me", "password": SECRET},
            "team-a/minio": secret,
        }
        (tmp_path / "storage.json").write_text(json.dumps(config))
        pod = start_pod(pvc_root=tmp_path / "claims", storage_config=tmp_path / "storage.json")
        models = {
            "claimed": {"uri": "pvc://team-a-models/m.onnx"},
            "committed": {"uri": git.uri("org/m", "@main#m.onnx"), "storage_key": "git"},
            "stored": {"uri": "s3://models/m.onnx", "storage_key": "minio"},
        }
        for tenant in ("team-a", "team-b"):
            with pod.client(tenant=tenant) as client:
                for name, spec in models.items():
                    client.register(name, **spec)  # type: ignore[arg-type]
                    if tenant == "team-a":
                        answer = client.infer(name, graph.inputs)
                        np.testing.assert_array_equal(answer.outputs["y"], graph.expected["y"])
                    else:
                        with pytest.raises(HexcombError, match=r"no such key|may not read the claim"):
                            client.infer(name, graph.inputs)
        assert SECRET not in pod.log_text()
