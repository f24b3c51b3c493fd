"""kube-apiserver and kube-controller-manager for the tests: found, or built from their Go module, once.

They come from $KUBEBUILDER_ASSETS (as `setup-envtest` fills it) or from PATH; what neither has is built into the user's
cache, under the version in `kubernetes/go.mod`, and takes many minutes the first time. `k8s.io/kubernetes` is not made
to be required by others: its go.mod replaces its own libraries by directories that the module does not carry, so ours
names them again by version. The version is stamped by the linker, as Kubernetes' own build does; without it a server
says v0.0.0-master, and Helm charts refuse it.

`python -m tests.cluster.kubernetes_programs` builds what is missing and prints where it is; `make test-cluster` does so
before the first test, since a test has minutes to run and a build may need more.

Deliberately absent: a scheduler, a kubelet, kube-proxy. etcd is the one of the other tests (`mesh.demo.etcd_server`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = Path(__file__).parent / "kubernetes"
PROGRAMS = ("kube-apiserver", "kube-controller-manager")


class KubernetesMissing(Exception):
    """A program is not here and cannot be built; the message says what to install."""


def version() -> str:
    """Of what would be built: `v1.35.4`."""
    found = re.search(r"^\s*(?:require )?k8s\.io/kubernetes (v\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, f"{MODULE / 'go.mod'} requires no k8s.io/kubernetes"
    return found[1]


def cache_dir() -> Path:
    """Where built programs are kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "hexcomb" / "kubernetes" / version()


def find_programs() -> dict[str, Path]:
    """Every program by its name. Raises KubernetesMissing."""
    found = {name: path for name in PROGRAMS if (path := _installed(name)) is not None}
    missing = [name for name in PROGRAMS if name not in found]
    return found | (_built(missing) if missing else {})


def _installed(name: str) -> Path | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and os.access(Path(assets) / name, os.X_OK):
        return Path(assets) / name
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None


def _built(names: list[str]) -> dict[str, Path]:
    home = cache_dir()
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever wants them at the same time waits for one build
        missing = [name for name in names if not (home / name).exists()]
        if missing:
            _build(missing, home)
    return {name: home / name for name in names}


def _build(names: list[str], home: Path) -> None:
    if shutil.which("go") is None:
        raise KubernetesMissing(
            f"{', '.join(names)}: neither in $KUBEBUILDER_ASSETS nor on PATH, and there is no Go to build them; "
            "install Go 1.25 or newer, or run `setup-envtest use` and set KUBEBUILDER_ASSETS"
        )
    number = version()
    major, minor = number.removeprefix("v").split(".")[:2]
    stamps = [
        f"-X {package}.{field}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for field, value in (("gitVersion", number), ("gitMajor", major), ("gitMinor", minor))
    ]
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        command = [
            *("go", "build", "-trimpath", "-ldflags", " ".join(["-s", "-w", *stamps]), "-o", scratch),
            *(f"k8s.io/kubernetes/cmd/{name}" for name in names),
        ]
        environment = {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false"}
        done = subprocess.run(
            command, cwd=MODULE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode != 0:
            raise KubernetesMissing(f"`{command[0]} {command[1]}` of {', '.join(names)} failed:\n{done.stdout[-3000:]}")
        for name in names:
            (Path(scratch) / name).replace(home / name)


if __name__ == "__main__":
    try:
        sys.stdout.writelines(f"{path}\n" for path in find_programs().values())
    except KubernetesMissing as error:
        sys.exit(f"error: {error}")
