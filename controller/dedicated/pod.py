"""The pod of a component. A predictor's is a runtime's, with the object's fields over it and the artifact at
`/mnt/models`; a container of its own is as it was written, and is called `kserve-container` whatever it was called.

In this order: 1. the runtime's pod, its container rendered for this service; 2. what a known server needs; 3. what the
object says of the container and of the pod; 4. the artifact's volume; 5. what every container of KServe has: its
service's name in `INFERENCE_SERVICE_NAME`, and a readiness probe on its first port where it says none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.dedicated.known_servers import image_for, server_additions, server_labels
from controller.dedicated.merging import merged
from controller.dedicated.model_volume import MODEL_DIR, ModelVolume, model_volume
from controller.dedicated.templating import rendered
from controller.policy import Policy
from controller.quantities import canonical
from controller.reading import InvalidField, Part
from controller.runtimes import Runtime
from controller.service_view import FRAMEWORKS, Component, Model, Service

MAIN = "kserve-container"
PORT_DEFAULT = 8080
_READ_ONLY = "storage.kserve.io/readonly"
_NOT_OF_THE_POD = frozenset(
    {"name", "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling"}
    | {"containerConcurrency", "timeout", "canaryTrafficPercent", "logger", "batcher", "labels", "annotations"}
    | {"deploymentStrategy", "workerSpec", "storageUris", "storageContainerName", "model", "art", *FRAMEWORKS}
)
"""What a component says beside a pod's spec."""
_NOT_OF_A_RUNTIMES_POD = frozenset(
    {"supportedModelFormats", "multiModel", "disabled", "protocolVersions", "workerSpec", "labels", "annotations"}
    | {"grpcEndpoint", "grpcDataEndpoint", "httpDataEndpoint", "replicas", "storageHelper", "builtInAdapter"}
)
_LISTS_OF_A_CONTAINER = ("env", "ports", "volumeMounts")


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """A pod's spec, and the labels and annotations that are its own."""

    spec: dict[str, Any]
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def main(self) -> Mapping[str, Any]:
        """The container that serves."""
        containers: list[dict[str, Any]] = self.spec["containers"]
        return next((one for one in containers if one.get("name") == MAIN), containers[0])


def predictor_pod(service: Service, runtime: Runtime | None, policy: Policy) -> PodTemplate:
    """`runtime` is None for a predictor that is a container of its own. Raises InvalidField."""
    if service.model is None or runtime is None:
        return container_pod(service, service.predictor, policy)
    base, labels, annotations = _runtimes_pod(service, service.model, runtime)
    pod = _pod(service, service.predictor, base, _models_volume(service, service.model, policy))
    return PodTemplate(pod, labels, annotations)


def container_pod(service: Service, component: Component, policy: Policy, args: tuple[str, ...] = ()) -> PodTemplate:
    """A component that is a container of its own; `args` come after those that it has. Raises InvalidField."""
    parts = list(component.pod.parts("containers"))
    if not parts:
        raise InvalidField(component.pod.at("containers"), "is missing; say which image to run")
    _check_lists(parts[0], _LISTS_OF_A_CONTAINER)
    args = (*parts[0].words("args"), *args)
    main = {**parts[0].value, "name": MAIN, **({"args": list(args)} if args else {})}
    volume = _custom_volume(main, component, policy)
    base = {"containers": [main, *(dict(part.value) for part in parts[1:])]}
    return PodTemplate(_pod(service, component, base, volume), {}, {})


def _pod(service: Service, component: Component, base: dict[str, Any], volume: ModelVolume) -> dict[str, Any]:
    """What is said of the pod over the base, then what every pod of a service has."""
    said = {key: value for key, value in component.pod.value.items() if key not in _NOT_OF_THE_POD}
    _check_lists(component.pod, ("containers", "initContainers", "volumes"))
    for container in component.pod.parts("containers"):
        _check_lists(container, _LISTS_OF_A_CONTAINER)
    if service.model is None or component is not service.predictor:
        said.pop("containers", None)
    pod = merged(base, said)
    containers = [_completed(dict(container), service) for container in pod["containers"]]
    main = next((one for one in containers if one.get("name") == MAIN), containers[0])
    main["volumeMounts"] = [*(main.get("volumeMounts") or ()), *volume.mounts]
    if main.get("readinessProbe") is None:
        main["readinessProbe"] = _default_probe(main)
    if not main["volumeMounts"]:
        del main["volumeMounts"]
    pod["containers"] = containers
    if volume.volumes:
        pod["volumes"] = [*(pod.get("volumes") or ()), *volume.volumes]
    if volume.init_containers:
        pod["initContainers"] = [*volume.init_containers, *(pod.get("initContainers") or ())]
    return pod


def _runtimes_pod(
    service: Service, model: Model, runtime: Runtime
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    path = f"ServingRuntime {runtime.name}: spec.containers"
    labels = {**runtime.spec.texts("labels"), **server_labels(runtime.name, model)}
    annotations = {"modelFormat": model.format, **service.annotations}
    containers = [dict(part.value) for part in runtime.spec.parts("containers")]
    for part in (*runtime.spec.parts("containers"), model.container):
        _check_lists(part, _LISTS_OF_A_CONTAINER)
    _check_lists(runtime.spec, ("volumes", "initContainers"))
    main = next((container for container in containers if container.get("name") == MAIN), None)
    if main is None:
        raise InvalidField(path, f"has no container named {MAIN}")
    known = {**labels, **service.labels}
    main.update(rendered(main, path, service.name, service.namespace, known, annotations))
    said = rendered(model.container.value, model.where, service.name, service.namespace, known, annotations)
    version = "" if model.container.has("image") else model.runtime_version
    container = merged(merged(main, server_additions(runtime.name, model, service.name)), said)
    container["image"] = image_for(str(container.get("image", "")), runtime.name, version, container)
    container["name"] = MAIN
    pod = {key: value for key, value in runtime.spec.value.items() if key not in _NOT_OF_A_RUNTIMES_POD}
    pod["containers"] = [container if one is main else one for one in containers]
    return pod, labels, runtime.spec.texts("annotations")


def _check_lists(part: Part, lists: tuple[str, ...]) -> None:
    for name in lists:
        list(part.parts(name))


def _models_volume(service: Service, model: Model, policy: Policy) -> ModelVolume:
    if model.storage is None:
        return ModelVolume()
    read_only = service.annotations.get(_READ_ONLY, "true").lower() != "false"
    return model_volume(model.storage.uri, model.storage.where, policy.storage_initialiser_image, read_only)


def _custom_volume(container: dict[str, Any], component: Component, policy: Policy) -> ModelVolume:
    """A container with STORAGE_URI in its environment finds the artifact there, and the variable says where."""
    env = list(container.get("env") or ())
    for index, entry in enumerate(env):
        if isinstance(entry, Mapping) and entry.get("name") == "STORAGE_URI" and entry.get("value"):
            container["env"] = [*env[:index], {**entry, "value": MODEL_DIR}, *env[index + 1 :]]
            path = f"{component.pod.at('containers')}[0].env[{index}].value"
            return model_volume(str(entry["value"]), path, policy.storage_initialiser_image, True)
    return ModelVolume()


def _completed(container: dict[str, Any], service: Service) -> dict[str, Any]:
    name = {"name": "INFERENCE_SERVICE_NAME", "value": service.name}
    resources = container.get("resources")
    if isinstance(resources, Mapping):
        container["resources"] = {
            kind: {what: canonical(amount) for what, amount in amounts.items()}
            if isinstance(amounts, Mapping)
            else amounts
            for kind, amounts in resources.items()
        }
    return merged(container, {"env": [name]}) if "env" in container else {**container, "env": [name]}


def _default_probe(container: Mapping[str, Any]) -> dict[str, Any]:
    ports = container.get("ports")
    first = ports[0] if isinstance(ports, list) and ports and isinstance(ports[0], Mapping) else {}
    port = first.get("containerPort", PORT_DEFAULT)
    return {
        "tcpSocket": {"port": port},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
