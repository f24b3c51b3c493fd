"""Kubernetes' own parts of our kinds: containers, and pods."""

from __future__ import annotations

from controller.crds.schema import (
    Schema,
    anything,
    flag,
    list_by,
    list_of,
    map_of,
    number_or_text,
    quantity,
    record,
    text,
    texts,
    whole,
)


def _reference(required: tuple[str, ...] = (), **more: Schema) -> Schema:
    return record({"name": text(default=""), "optional": flag(), **more}, required)


def environment() -> Schema:
    """`env` of a container."""
    source = record(
        {
            "configMapKeyRef": _reference(("key",), key=text()),
            "secretKeyRef": _reference(("key",), key=text()),
            "fieldRef": record({"apiVersion": text(), "fieldPath": text()}, ["fieldPath"]),
            "fileKeyRef": record(
                {"key": text(), "optional": flag(default=False), "path": text(), "volumeName": text()},
                ["key", "path", "volumeName"],
            ),
            "resourceFieldRef": record(
                {"containerName": text(), "divisor": quantity(), "resource": text()}, ["resource"]
            ),
        }
    )
    return list_by(["name"], record({"name": text(), "value": text(), "valueFrom": source}, ["name"]))


def resources() -> Schema:
    """Requests and limits."""
    claims = list_by(["name"], record({"name": text(), "request": text()}, ["name"]))
    return record({"claims": claims, "limits": map_of(quantity()), "requests": map_of(quantity())})


def _port() -> Schema:
    return record(
        {
            "containerPort": whole(32),
            "hostIP": text(),
            "hostPort": whole(32),
            "name": text(),
            "protocol": text(default="TCP"),
        },
        ["containerPort"],
    )


def _mount() -> Schema:
    return record(
        {
            "mountPath": text(),
            "mountPropagation": text(),
            "name": text(),
            "readOnly": flag(),
            "recursiveReadOnly": text(),
            "subPath": text(),
            "subPathExpr": text(),
        },
        ["mountPath", "name"],
    )


def container_fields() -> dict[str, Schema]:
    """Of a container."""
    return {
        "args": list_of(text()),
        "command": list_of(text()),
        "env": environment(),
        "envFrom": list_of(
            record({"configMapRef": _reference(), "prefix": text(), "secretRef": _reference()}),
        ),
        "image": text(),
        "imagePullPolicy": text(),
        "lifecycle": anything(),
        "livenessProbe": anything(),
        "name": text(),
        "ports": list_by(["containerPort", "protocol"], _port()),
        "readinessProbe": anything(),
        "resizePolicy": list_of(
            record({"resourceName": text(), "restartPolicy": text()}, ["resourceName", "restartPolicy"])
        ),
        "resources": resources(),
        "restartPolicy": text(),
        "restartPolicyRules": list_of(anything()),
        "securityContext": anything(),
        "startupProbe": anything(),
        "stdin": flag(),
        "stdinOnce": flag(),
        "terminationMessagePath": text(),
        "terminationMessagePolicy": text(),
        "tty": flag(),
        "volumeDevices": list_by(
            ["devicePath"], record({"devicePath": text(), "name": text()}, ["devicePath", "name"])
        ),
        "volumeMounts": list_by(["mountPath"], _mount()),
        "workingDir": text(),
    }


def containers() -> Schema:
    """A list of containers."""
    return list_of(record(container_fields(), ["name"]))


def volumes() -> Schema:
    """A list of volumes, from any source."""
    return list_of({**anything(), "properties": {"name": text()}, "required": ["name"]})


def pull_secrets() -> Schema:
    """Names of Secrets."""
    return list_of(record({"name": text(default="")}))


def _named(keys: list[str], whole_too: str = "") -> Schema:
    """A list of objects that are kept as they come, but for the fields that they are known by."""
    fields = {key: text() for key in keys} | ({whole_too: whole(32)} if whole_too else {})
    return list_by(keys, {**anything(), "properties": fields, "required": sorted(fields)})


def tolerations() -> Schema:
    """Taints that pods bear."""
    fields = {"effect": text(), "key": text(), "operator": text(), "tolerationSeconds": whole(64), "value": text()}
    return list_of(record(fields))


def pod_fields() -> dict[str, Schema]:
    """Of a pod's spec, containers among them."""
    return {
        "activeDeadlineSeconds": whole(64),
        "affinity": anything(),
        "automountServiceAccountToken": flag(),
        "containers": containers(),
        "dnsConfig": anything(),
        "dnsPolicy": text(),
        "enableServiceLinks": flag(),
        "hostAliases": list_of(record({"hostnames": list_of(text()), "ip": text()}, ["ip"])),
        "hostIPC": flag(),
        "hostNetwork": flag(),
        "hostPID": flag(),
        "hostUsers": flag(),
        "hostname": text(),
        "hostnameOverride": text(),
        "imagePullSecrets": pull_secrets(),
        "initContainers": containers(),
        "nodeName": text(),
        "nodeSelector": texts(),
        "os": record({"name": text()}),
        "overhead": map_of(quantity()),
        "preemptionPolicy": text(),
        "priority": whole(32),
        "priorityClassName": text(),
        "readinessGates": list_of(record({"conditionType": text()}, ["conditionType"])),
        "resourceClaims": _named(["name"]),
        "resources": resources(),
        "restartPolicy": text(),
        "runtimeClassName": text(),
        "schedulerName": text(),
        "schedulingGates": list_by(["name"], record({"name": text()}, ["name"])),
        "securityContext": anything(),
        "serviceAccount": text(),
        "serviceAccountName": text(),
        "setHostnameAsFQDN": flag(),
        "shareProcessNamespace": flag(),
        "subdomain": text(),
        "terminationGracePeriodSeconds": whole(64),
        "tolerations": tolerations(),
        "topologySpreadConstraints": _named(["topologyKey", "whenUnsatisfiable"], whole_too="maxSkew"),
        "volumes": volumes(),
    }


def deployment_strategy() -> Schema:
    """How new pods take the place of old ones."""
    rolling = record({"maxSurge": number_or_text(), "maxUnavailable": number_or_text()})
    return record({"rollingUpdate": rolling, "type": text()})
