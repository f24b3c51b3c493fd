"""A CustomResourceDefinition in KServe's group, as a value and as the manifest that a cluster takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controller.crds.schema import Schema, anything, record, text

GROUP = "serving.kserve.io"


@dataclass(frozen=True, slots=True)
class Column:
    """Of `kubectl get`."""

    name: str
    path: str
    type: str = "string"


@dataclass(frozen=True, slots=True)
class Definition:
    """One kind, in one version."""

    kind: str
    version: str
    spec: Schema
    status: Schema
    columns: tuple[Column, ...]
    short_names: tuple[str, ...] = ()
    of_cluster: bool = False
    """Not in a namespace."""
    status_written_apart: bool = False
    """The status is a subresource: who writes the spec cannot write it, and the other way round."""

    @property
    def plural(self) -> str:
        return f"{self.kind.lower()}s"

    @property
    def name(self) -> str:
        """Of the definition."""
        return f"{self.plural}.{GROUP}"

    def manifest(self) -> dict[str, Any]:
        """For server-side apply: what `kubectl apply` would remember of it does not fit into an annotation."""
        whole = record({"apiVersion": text(), "kind": text(), "metadata": {"type": "object"}, "spec": self.spec})
        whole["properties"]["status"] = self.status or anything()
        names: dict[str, Any] = {
            "kind": self.kind,
            "listKind": f"{self.kind}List",
            "plural": self.plural,
            "singular": self.kind.lower(),
        }
        if self.short_names:
            names["shortNames"] = list(self.short_names)
        version = {
            "name": self.version,
            "served": True,
            "storage": True,
            "subresources": {"status": {}} if self.status_written_apart else {},
            "additionalPrinterColumns": [
                {"name": column.name, "type": column.type, "jsonPath": column.path} for column in self.columns
            ],
            "schema": {"openAPIV3Schema": whole},
        }
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name},
            "spec": {
                "group": GROUP,
                "names": names,
                "scope": "Cluster" if self.of_cluster else "Namespaced",
                "versions": [version],
            },
        }
