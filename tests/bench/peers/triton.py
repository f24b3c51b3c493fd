"""Triton from the nvidia-pytriton wheel, as a server of its own: with its Python backend, on the CPU."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

REQUIREMENT = "nvidia-pytriton==0.7.0"


def packages_of(python: Path) -> Path:
    """Where that environment's packages lie, of which models may use what they need."""
    return next((python.parent.parent / "lib").glob("python3.*")) / "site-packages"


def triton_server(python: Path, home: Path, grpc_port: int, http_port: int) -> tuple[list[str | Path], dict[str, str]]:
    """The command that serves the model directory `home / "models"`, and what it needs in its environment. `home` is
    a directory of its own."""
    packages = packages_of(python)
    server = packages / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backends = home / "backends"
    shutil.copytree(server / "backends" / "python", backends / "python", symlinks=True)
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python" / "triton_python_backend_stub")
    libraries = (packages / "nvidia_pytriton.libs", server / "backends" / "python", sysconfig.get_config_var("LIBDIR"))
    command: list[str | Path] = [
        server / "bin" / "tritonserver",
        "--model-repository", home / "models", "--backend-directory", backends, "--cache-directory", server / "caches",
        "--grpc-address", "127.0.0.1", "--grpc-port", str(grpc_port),
        "--http-address", "127.0.0.1", "--http-port", str(http_port), "--allow-metrics", "false",
    ]  # fmt: skip
    return command, {"LD_LIBRARY_PATH": ":".join(str(library) for library in libraries)}
