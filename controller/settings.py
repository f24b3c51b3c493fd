"""Every setting of the controller, in one typed class.

A setting has a unit in its name, a default, and a reason, which is its help text. It is read once, at start: from the
command line, else from `HEXCOMB_CONTROLLER_<NAME>` in the environment, else the default. `hexcomb-controller --help` is
made from this class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from controller.policy import Mode, Policy


class Settings(BaseSettings):
    """The settings of one controller."""

    model_config = SettingsConfigDict(env_prefix="HEXCOMB_CONTROLLER_", frozen=True, extra="forbid")

    # The cluster ------------------------------------------------------------------------------------------------
    kubeconfig: Path | None = Field(
        None,
        description="Kubeconfig of the cluster. Without one: the service account of the pod that this is, else "
        "~/.kube/config.",
    )
    context: str | None = Field(None, description="Context in the kubeconfig; its current one unless said.")
    watch_namespace: str = Field(
        "", description="Only InferenceServices of this namespace; empty: of all, which needs a ClusterRole."
    )
    default_mode: Literal["Auto", "ModelMesh", "Standard"] = Field(
        "Auto",
        description="Where an InferenceService goes that does not say: Auto is the mesh if it can serve it as it is "
        "written, else pods of its own.",
    )
    beside_kserve: bool = Field(
        False,
        description="KServe's own controller runs in this cluster too: act on services with the annotation "
        "serving.kserve.io/deploymentMode: ModelMesh, which it leaves alone, and on no others.",
    )
    cluster_domain: str = Field("cluster.local", description="Of Services' names in the cluster's DNS.")

    storage_initialiser_image: str = Field(
        "kserve/storage-initializer:v0.20.0", description="Fetches the artifact in pods of a service's own."
    )
    move_grace_s: float = Field(
        60.0,
        ge=0,
        description="A service that has moved between the mesh and pods of its own is left standing where it was for "
        "so long, for whoever has looked its name up before.",
    )

    # The mesh ---------------------------------------------------------------------------------------------------
    mesh_endpoint: str = Field(
        "127.0.0.1:8033",
        description="HOST:PORT of the mesh's gRPC, several with commas between them. A namespace is a tenant there.",
    )
    mesh_host: str = Field(
        "hexcomb.hexcomb.svc.cluster.local",
        description="Name of the Service in front of the mesh's pods, as services' URLs lead to it.",
    )
    mesh_http_port: int = Field(
        80, ge=1, le=65535, description="HTTP port of that Service, as it is in services' URLs."
    )
    mesh_grpc_port: int = Field(
        8033, ge=1, le=65535, description="gRPC port of that Service, as it is in services' URLs."
    )
    mesh_timeout_s: float = Field(
        20.0, gt=0, description="Of one call to the mesh; a pool whose store is away answers late, or not at all."
    )
    mesh_view_age_max_s: float = Field(
        1.0, ge=0, description="A decision is made from what the mesh held at most so long ago."
    )
    mesh_resync_s: float = Field(
        15.0,
        gt=0,
        description="How often the mesh is asked for everything of a namespace, to notice what nobody told: a store "
        "that was emptied, models that somebody took away.",
    )

    # The loop ---------------------------------------------------------------------------------------------------
    workers: int = Field(
        64, ge=1, le=512, description="InferenceServices that are worked on at a time; each waits for servers mostly."
    )
    retry_base_s: float = Field(0.5, gt=0, description="Before the second try of what failed; doubled after each.")
    retry_max_s: float = Field(30.0, gt=0, description="Between tries of what goes on failing.")
    leader_elect: bool = Field(True, description="Of several controllers one acts, by a Lease.")
    lease_namespace: str = Field("hexcomb", description="Namespace of that Lease.")
    lease_name: str = Field("hexcomb-controller", description="Name of that Lease.")

    # What it tells ----------------------------------------------------------------------------------------------
    host: str = Field("0.0.0.0", description="Address of /metrics, /healthz and /readyz, for probes and scrapers.")
    http_port: int = Field(8080, ge=0, le=65535, description="Port of those; 0 picks one.")
    ready_file: Path | None = Field(
        None, description="Write the HTTP port and the pid as JSON to this file once it has started (for scripts)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Of the log on stderr.")

    def policy(self) -> Policy:
        """The part that decisions know."""
        return Policy(
            default_mode=Mode(self.default_mode),
            beside_kserve=self.beside_kserve,
            mesh_host=self.mesh_host,
            mesh_http_port=self.mesh_http_port,
            mesh_grpc_port=self.mesh_grpc_port,
            cluster_domain=self.cluster_domain,
            storage_initialiser_image=self.storage_initialiser_image,
            move_grace_s=self.move_grace_s,
        )
