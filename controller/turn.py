"""What one decision about one service is made from."""

from __future__ import annotations

from dataclasses import dataclass

from controller.mesh_view import MeshView
from controller.objects import Objects
from controller.policy import Policy
from controller.reading import Manifest
from controller.service_view import Service


@dataclass(frozen=True, slots=True)
class Turn:
    """Everything that a decision sees; `now_s` is Unix time, for the status."""

    service: Service
    objects: Objects
    mesh: MeshView
    policy: Policy
    before: Manifest
    """The status that the object has."""
    now_s: float
