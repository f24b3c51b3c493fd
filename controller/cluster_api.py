"""The API server: a few calls on plain objects, with our errors. The only file that knows `kubernetes` and aiohttp.

`kubernetes` finds the server and the credentials (a pod's service account, whose token is read again each minute, or
a kubeconfig with whatever plug-ins it names); requests are our own. Its typed models would be in the way: an object is
read whole, with fields that no model of today knows, and what is applied holds only the fields that we mean to own.

Every call has a deadline. Nothing is tried twice here: whoever calls works through a queue with back-off.

Deliberately absent: caches (`controller.informers`), and anything about InferenceServices.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from controller.cluster_errors import ClusterError, Missing, Unreachable, error_of
from controller.names import FIELD_MANAGER

Json = dict[str, Any]

CALL_TIMEOUT_S = 30.0
"""Of one call. An API server that takes longer is as good as none; its own limit is a minute."""
CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 32
"""At once: more than there are workers, and far below what an API server lets one client have in flight."""
PAGE_OBJECTS = 500
"""Per page of a list, as kubectl has it."""
LINE_BYTES_MAX = 4 * 1024 * 1024
"""Of one change in a watch; etcd holds no object beyond 1.5 MiB."""
_MESSAGE_LENGTH_MAX = 2000


@dataclass(frozen=True, slots=True)
class Kind:
    """Objects of one kind, and where the API server has them."""

    group: str
    version: str
    plural: str
    of_cluster: bool = False
    """Not in a namespace."""

    def path(self, namespace: str = "", name: str = "", part: str = "") -> str:
        """Of all objects, of those in a namespace, or of one; `part`: of its status."""
        words = ["api", self.version] if not self.group else ["apis", self.group, self.version]
        if namespace and not self.of_cluster:
            words += ["namespaces", namespace]
        words += [self.plural, *((name,) if name else ()), *((part,) if part else ())]
        return "/" + "/".join(quote(word, safe="") for word in words)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


INFERENCE_SERVICES = Kind("serving.kserve.io", "v1beta1", "inferenceservices")
SERVING_RUNTIMES = Kind("serving.kserve.io", "v1alpha1", "servingruntimes")
CLUSTER_SERVING_RUNTIMES = Kind("serving.kserve.io", "v1alpha1", "clusterservingruntimes", of_cluster=True)
SERVICES = Kind("", "v1", "services")
DEPLOYMENTS = Kind("apps", "v1", "deployments")
AUTOSCALERS = Kind("autoscaling", "v2", "horizontalpodautoscalers")
SCALED_OBJECTS = Kind("keda.sh", "v1alpha1", "scaledobjects")
LEASES = Kind("coordination.k8s.io", "v1", "leases")
EVENTS = Kind("", "v1", "events")


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a watch."""

    type: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""
    object: Json


class CannotConnect(Exception):
    """There is no cluster to talk to; the message says what was looked for and what to do."""


class ClusterApi:
    """One API server. Belongs to the loop that it is opened on; use it as an async context manager."""

    def __init__(self, configuration: Any, counted: Callable[[str, str], None] | None = None) -> None:
        """`counted`: told the method and the outcome of each call. See `open_cluster`."""
        import aiohttp

        self._configuration = configuration
        self._counted = counted or (lambda method, outcome: None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=_ssl_context(configuration)),
            trust_env=True,
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            read_bufsize=LINE_BYTES_MAX,
        )
        self._errors = (aiohttp.ClientError, asyncio.TimeoutError, OSError)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def serves(self, kind: Kind) -> bool:
        """Whether the cluster has this kind at all. Raises ClusterError."""
        try:
            known = await self._call("GET", kind.path().rpartition("/")[0])
        except Missing:
            return False
        return any(resource["name"] == kind.plural for resource in known["resources"])

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Raises ClusterError."""
        return await self._call("GET", kind.path(namespace, name))

    async def find(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """As a list of one, which whoever may list and watch a kind may read. Raises ClusterError."""
        page = await self._call("GET", kind.path(namespace), query={"fieldSelector": f"metadata.name={name}"})
        return next(iter(page.get("items") or ()), None)

    async def create(self, kind: Kind, namespace: str, manifest: Mapping[str, Any]) -> Json:
        """Raises ClusterError; Conflict where it exists."""
        return await self._call("POST", kind.path(namespace), manifest)

    async def replace(self, kind: Kind, manifest: Mapping[str, Any], part: str = "") -> Json:
        """Write an object that was read, or its status. Raises ClusterError; Conflict where it has changed since."""
        metadata = manifest["metadata"]
        return await self._call("PUT", kind.path(metadata.get("namespace", ""), metadata["name"], part), manifest)

    async def merge(self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]) -> Json:
        """A JSON merge patch; with a resource version in it, only to that. Raises ClusterError."""
        return await self._call("PATCH", kind.path(namespace, name), patch, "application/merge-patch+json")

    async def apply(self, kind: Kind, manifest: Mapping[str, Any], *, force: bool) -> Json:
        """Server-side apply; `force`: fields that others have set become ours. Raises ClusterError; without force
        Conflict where another has a field."""
        metadata = manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        return await self._call("PATCH", path, manifest, "application/apply-patch+yaml", query)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """This object and none that has come in its place. Raises ClusterError."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        await self._call("DELETE", kind.path(namespace, name), options)

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "") -> tuple[list[Json], str]:
        """All objects, page by page, and the resource version from which a watch goes on. Raises ClusterError."""
        objects: list[Json] = []
        page_token = ""
        while True:
            query = {"limit": str(PAGE_OBJECTS)}
            query |= {name: value for name, value in (("continue", page_token), ("labelSelector", labels)) if value}
            page = await self._call("GET", kind.path(namespace), query=query)
            # Entries of a list leave out what the list has said for all of them.
            said = {"apiVersion": page["apiVersion"], "kind": page["kind"].removesuffix("List")}
            objects += [{**said, **item} for item in page.get("items") or ()]
            metadata = page.get("metadata", {})
            page_token = metadata.get("continue", "")
            if not page_token:
                return objects, metadata.get("resourceVersion", "")

    async def watch(
        self, kind: Kind, resource_version: str, namespace: str = "", *, for_s: float, labels: str = ""
    ) -> AsyncIterator[Change]:
        """Changes after a resource version, until the server ends the stream after `for_s`. Raises ClusterError."""
        import aiohttp

        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(for_s)),
            **({"labelSelector": labels} if labels else {}),
        }
        # The server ends the stream; a line that says nothing for longer than that is dead.
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=for_s + CALL_TIMEOUT_S)
        try:
            async with self._session.get(
                self._configuration.host + kind.path(namespace),
                params=query,
                headers=await self._headers(),
                timeout=timeout,
                **self._how(),
            ) as answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, await answer.text(), answer.headers)
                async for line in answer.content:
                    said = json.loads(line)
                    if said.get("type") == "ERROR":
                        status = said.get("object", {})
                        raise error_of(int(status.get("code", 500)), str(status.get("message", "")))
                    yield Change(said["type"], said["object"])
        except ClusterError:
            raise
        except (*self._errors, ValueError, KeyError) as error:
            raise Unreachable(f"the watch of {kind} broke off: {_shown(error)}") from error

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Json:
        outcome = "unreachable"
        try:
            async with self._session.request(
                method,
                self._configuration.host + path,
                params=query,
                data=None if body is None else json.dumps(body),
                headers={**await self._headers(), "Content-Type": content_type},
                **self._how(),
            ) as answer:
                outcome = str(answer.status)
                text = await answer.text()
                if answer.status >= 400:
                    raise _refusal(answer.status, text, answer.headers)
                said: Json = json.loads(text)
                return said
        except ClusterError:
            raise
        except (*self._errors, ValueError) as error:
            raise Unreachable(f"{method} {path}: {_shown(error)}") from error
        finally:
            self._counted(method, outcome)

    async def _headers(self) -> dict[str, str]:
        credentials = (await self._configuration.auth_settings()).get("BearerToken")
        token = credentials["value"] if credentials else None
        return {"Accept": "application/json", "User-Agent": "hexcomb-controller"} | (
            {"Authorization": token} if token else {}
        )

    def _how(self) -> dict[str, Any]:
        how = {"server_hostname": self._configuration.tls_server_name, "proxy": self._configuration.proxy}
        return {name: value for name, value in how.items() if value}


async def open_cluster(
    kubeconfig: Path | None = None, context: str | None = None, counted: Callable[[str, str], None] | None = None
) -> ClusterApi:
    """A kubeconfig if one is given, else the service account of the pod that this is, else the user's own kubeconfig.
    Raises CannotConnect."""
    try:
        from kubernetes.aio import client, config
    except ImportError as error:
        raise CannotConnect(
            "the controller needs the package `kubernetes`: pip install 'hexcomb[controller]'"
        ) from error
    configuration = client.Configuration()
    try:
        if kubeconfig is None and context is None:
            try:
                config.load_incluster_config(client_configuration=configuration)
                return ClusterApi(configuration, counted)
            except config.ConfigException:
                pass  # this is no pod
        await config.load_kube_config(
            config_file=None if kubeconfig is None else str(kubeconfig),
            context=context,
            client_configuration=configuration,
            persist_config=False,
        )
        return ClusterApi(configuration, counted)
    except (config.ConfigException, OSError, ssl.SSLError) as error:
        where = kubeconfig or "this is no pod of a cluster, and ~/.kube/config"
        raise CannotConnect(f"no cluster to talk to: {where}: {error}; name a kubeconfig with --kubeconfig") from error


def _ssl_context(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refusal(status: int, text: str, headers: Mapping[str, str]) -> ClusterError:
    try:
        message = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        message = text
    wait = headers.get("Retry-After", "")
    return error_of(status, message[:_MESSAGE_LENGTH_MAX], float(wait) if wait.isdecimal() else None)


def _shown(error: BaseException) -> str:
    return str(error) or type(error).__name__


def moment(unix_s: float | None = None) -> str:
    """RFC 3339, in seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))
