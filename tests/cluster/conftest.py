"""One control plane for all tests of this directory, with our CRDs in it; each test takes namespaces of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import yaml

from mesh.demo.etcd_server import EtcdMissing, EtcdServer, find_etcd
from tests.cluster.control_plane import Admin, ControlPlane
from tests.cluster.controllers import ControllerStarter, StartController
from tests.cluster.kubernetes_programs import KubernetesMissing, find_programs
from tests.e2e.conftest import ModelFiles, PodStarter, StartPod

CRDS = Path(__file__).parents[2] / "deploy" / "crds"
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_numbers = count()


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running cluster."""
    try:
        programs = find_programs()
        etcd_program = find_etcd(os.environ.get("HEXCOMB_TEST_ETCD"))
    except (KubernetesMissing, EtcdMissing) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("cluster")
    etcd = EtcdServer(etcd_program, directory / "etcd").start()
    plane = ControlPlane(programs, etcd, directory)
    try:
        yield plane.start()
    finally:
        plane.stop()
        etcd.stop()


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    """A running cluster that serves our kinds."""
    admin = control_plane.admin
    names = []
    for file in sorted(CRDS.glob("*.yaml")):
        manifest = yaml.load(file.read_text(), Loader=_LOADER)
        names.append(manifest["metadata"]["name"])
        admin.apply(f"{CRD_PATH}/{names[-1]}", manifest)
    for name in names:
        admin.wait_until(lambda name=name: _is_established(admin, name), f"the cluster serves {name}")
    return control_plane


def _is_established(admin: Admin, name: str) -> bool:
    conditions = admin.get(f"{CRD_PATH}/{name}").get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


@pytest.fixture
def make_namespace(cluster: ControlPlane) -> Callable[[], str]:
    """Make a namespace that has its service account."""

    def make() -> str:
        name = f"test-{next(_numbers)}"
        admin = cluster.admin
        admin.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        admin.wait_until(lambda: admin.find(account), f"{name} has a service account")
        return name

    return make


@pytest.fixture
def namespace(make_namespace: Callable[[], str]) -> str:
    """A namespace of this test's own."""
    return make_namespace()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Artifacts that all tests share."""
    return ModelFiles(tmp_path_factory.mktemp("models"))


@pytest.fixture
def start_pod(tmp_path: Path) -> Iterator[StartPod]:
    """Start pods of a mesh for one test."""
    starter = PodStarter(tmp_path)
    yield starter
    starter.close()


@pytest.fixture
def start_controller(cluster: ControlPlane, tmp_path: Path) -> Iterator[StartController]:
    """Start controllers for one test."""
    starter = ControllerStarter(cluster, tmp_path)
    yield starter
    starter.close()
