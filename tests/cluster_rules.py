"""Rules for what a cluster's API server refuses, and for volumes that its nodes cannot share."""

from __future__ import annotations

import re
from collections.abc import Iterator

from manifest_rules import Manifests, Pod, matches, named_by, namespace_of, rule, title

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_VALUE = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"


@rule
def identifiers(manifests: Manifests) -> Iterator[str]:
    """Names and labels have the form that the API server asks for, and mounts a place each.

    https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
    """
    for doc in manifests.docs:
        name = doc["metadata"]["name"]
        form = rf"{_LABEL}(\.{_LABEL})*"
        if doc["kind"] in ("Service", "TFJob"):
            form = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
        # What a CronJob adds to the names of its jobs takes 11 characters.
        if not re.fullmatch(form, name) or (doc["kind"] == "CronJob" and len(name) > 52):
            yield f"{title(doc)}: {name!r} cannot be its name"
        for key, value in doc["metadata"].get("labels", {}).items():
            if not re.fullmatch(_VALUE, value):
                yield f"{title(doc)}: {value!r} cannot be the value of label {key}"
    for pod in manifests.pods:
        for key, value in pod.labels.items():
            if not re.fullmatch(_VALUE, value):
                yield f"{pod.name}: {value!r} cannot be the value of label {key}"
        for kind, names in (
            ("containers", [container["name"] for container in pod.containers]),
            ("volumes", [volume["name"] for volume in pod.spec.get("volumes", ())]),
        ):
            for name in names:
                if not re.fullmatch(_LABEL, name) or names.count(name) > 1:
                    yield f"{pod.name}: {kind}: {name!r} is not a name, or that of two"
        for container in pod.containers:
            at = f"{pod.name}: container {container['name']}"
            for port in container.get("ports", ()):
                name = port.get("name", "x")
                if not re.fullmatch(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*", name) or len(name) > 15:
                    yield f"{at}: {name!r} cannot be a port's name"
            places = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            for place in sorted({place for place in places if places.count(place) > 1}):
                yield f"{at}: {place} is mounted twice"


@rule
def claims(manifests: Manifests) -> Iterator[str]:
    """A volume that one node at a time may have serves one pod, or pods that keep to its node."""
    for claim in manifests.of("PersistentVolumeClaim"):
        if claim["spec"]["accessModes"] != ["ReadWriteOnce"]:
            continue
        name = claim["metadata"]["name"]
        users = [
            pod
            for pod in manifests.pods
            if pod.namespace == namespace_of(claim)
            and ("PersistentVolumeClaim", name, set()) in named_by(pod)
        ]
        for pod in users:
            spec = pod.owner["spec"]
            others = [other for other in users if other is not pod]
            sets = [spec, *spec.get("tfReplicaSpecs", {}).values()]
            several = any(one.get("replicas", 1) > 1 for one in sets)
            if several or pod.owner["kind"] == "DaemonSet":
                yield f"{pod.name}: {title(claim)} is of one node, and these pods are of several"
            elif pod.owner["kind"] == "Deployment" and (
                spec.get("strategy", {}).get("type") != "Recreate"
            ):
                yield f"{pod.name}: a new pod may wait for {title(claim)}; set strategy: Recreate"
            elif others and not any(
                _beside(one, other) for one, other in ((pod, others[0]), (others[0], pod))
            ):
                yield f"{pod.name}: {title(claim)} is of one node, and of {others[0].name} too"


def _beside(pod: Pod, other: Pod) -> bool:
    """Whether a pod is put on another's node."""
    affinity = pod.spec.get("affinity", {}).get("podAffinity", {})
    return any(
        term["topologyKey"] == "kubernetes.io/hostname"
        and matches(term["labelSelector"], other.labels)
        for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", ())
    )
