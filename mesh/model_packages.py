"""The packages that a Python model asks for, on this pod's disk, for as long as its artifact is held.

Installed once for all models that ask for the same (`runtime_adapters.package_install`), counted with the artifacts,
and evicted as they are when nobody holds them. Only for artifacts of trusted prefixes, and only where the operator has
said where packages come from; a model whose packages the pod has already needs neither.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mesh.settings import Settings
from mesh.threads import in_thread
from runtime_adapters.artifacts.fetch import Artifact, ArtifactStore
from runtime_adapters.errors import BadArtifact, UntrustedArtifact
from runtime_adapters.package_install import SITE, PackageSources, install, install_key
from runtime_adapters.requirements import REQUIREMENTS_FILE, Requirements, missing_here, read_requirements

_SHOWN_CHARS_MAX = 200


class ModelPackages:
    """Of one pod. Owned by the event loop."""

    def __init__(self, artifacts: ArtifactStore, settings: Settings) -> None:
        self._artifacts = artifacts
        index = settings.package_index
        self._sources = PackageSources(
            None if index is None else index.get_secret_value(),
            settings.package_links,
            int(settings.packages_size_max),
        )

    async def of(self, artifact: Artifact) -> Path | None:
        """The directory to put onto the model's path; None: the pod's own packages will do. Raises BadArtifact,
        UntrustedArtifact, LoadFailed, MissingRuntime."""
        found = await in_thread("requirements", _not_here, artifact.path)
        if found is None:
            return None
        requirements, missing = found
        if not self._sources.any:
            raise BadArtifact(
                f"{REQUIREMENTS_FILE} asks for {missing}, which this pod has not, and it installs none: start it with "
                "--package-index or --package-links, or have them in its image"
            )
        if not artifact.trusted:
            raise UntrustedArtifact(
                f"{REQUIREMENTS_FILE} asks for {missing}, and packages are installed for trusted prefixes only: mark "
                "its prefix with --trusted-prefixes, or have them in the pod's image"
            )
        fill = partial(install, requirements, self._sources)
        name = install_key(requirements, self._sources)
        return await self._artifacts.beside(artifact, name, self._sources.bytes_max, fill) / SITE


def _not_here(artifact: Path) -> tuple[Requirements, str] | None:
    """What an artifact asks for, if the pod lacks some of it, and what it lacks. Raises BadArtifact."""
    requirements = read_requirements(artifact)
    missing = [] if requirements is None else missing_here(requirements)
    if requirements is None or not missing:
        return None
    return requirements, ", ".join(str(each) for each in missing)[:_SHOWN_CHARS_MAX]
