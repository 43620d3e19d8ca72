"""What a cluster lacks of what a compiled pipeline needs, asked before the pipeline is sent.

Kubeflow takes a run whose step no node can hold, or whose secret is missing, and lets it wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coralline.errors import DeviceError, UserError
from pipelines.package import executors, kubernetes_settings, parse_quantity, read_package

_TIMEOUT_S = (10, 60)

_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Has Kubernetes leave out what a secret holds."""


@dataclass(frozen=True)
class Node:
    """A node of a cluster.

    Attributes:
        labels: Its own.
        taints: Each with `key`, `effect` and maybe `value`.
        room: What pods can have of each resource, as if there were none yet.
    """

    labels: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...]
    room: Mapping[str, float]


class Cluster:
    """A Kubernetes cluster.

    Args:
        context: Of the user's kubeconfig.

    Raises:
        UserError: There is no such context.
    """

    def __init__(self, context: str) -> None:
        from kubernetes import config

        try:
            self._client = config.new_client_from_config(context=context)
        except config.ConfigException as error:
            raise UserError(
                f"--kube-context {context}: {error}; `kubectl config get-contexts` lists them"
            ) from None

    def nodes(self) -> list[Node]:
        """Its nodes.

        Raises:
            DeviceError: It does not answer, or refuses.
        """
        found = self._ask("/api/v1/nodes")
        if found is None:
            raise DeviceError("the cluster has no list of nodes")
        return [_node(item) for item in found["items"]]

    def has(self, kind: str, namespace: str, name: str) -> bool:
        """Whether it has an object, `secrets` or `serviceaccounts`.

        Raises:
            DeviceError: It does not answer, or refuses.
        """
        return self._ask(f"/api/v1/namespaces/{namespace}/{kind}/{name}", _METADATA) is not None

    def _ask(self, path: str, accept: str = "application/json") -> Any:
        import urllib3
        from kubernetes.client import ApiException

        try:
            return self._client.call_api(
                path,
                "GET",
                header_params={"Accept": accept},
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT_S,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise DeviceError(
                f"the cluster refuses GET {path}: {error.status} {error.reason}; leave out "
                "--kube-context, or ask for the right to read it"
            ) from None
        except urllib3.exceptions.HTTPError as error:
            raise DeviceError(f"the cluster does not answer: {error}", retryable=True) from None


def check_room(file: Path, cluster: Cluster, namespace: str, service_account: str = "") -> None:
    """Refuse a compiled pipeline that a cluster cannot run, however empty it is.

    Args:
        namespace: Of its pods.
        service_account: Of its pods; empty for the server's own, which is not looked for.

    Raises:
        UserError: No node has what a step asks for, or a secret or the account is missing.
        DeviceError: The cluster does not answer, or refuses.
    """
    documents = read_package(file)
    nodes = cluster.nodes()
    settings = kubernetes_settings(documents)
    faults = [
        fault
        for name, executor in executors(documents[0]).items()
        for fault in _too_much(name, executor, settings.get(name, {}), nodes)
    ]
    for secret in sorted({name for step in settings.values() for name in _secrets(step)}):
        if not cluster.has("secrets", namespace, secret):
            faults.append(f"secret {secret} is not in namespace {namespace}")
    if service_account and not cluster.has("serviceaccounts", namespace, service_account):
        faults.append(f"service account {service_account} is not in namespace {namespace}")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"the cluster cannot run this: {faults[0]}{more}")


def _node(item: Mapping[str, Any]) -> Node:
    room = {}
    for what, text in item["status"]["allocatable"].items():
        quantity = parse_quantity(str(text))
        # What cannot be read here is no ground to refuse.
        room[what] = float("inf") if quantity is None else quantity
    return Node(item["metadata"].get("labels", {}), tuple(item["spec"].get("taints", ())), room)


def _secrets(step: Mapping[str, Any]) -> Iterator[str]:
    for secret in (*step.get("secretAsEnv", ()), *step.get("secretAsVolume", ())):
        if not secret.get("optional") and secret.get("secretName"):
            yield secret["secretName"]


def _too_much(
    name: str, executor: Mapping[str, Any], step: Mapping[str, Any], nodes: list[Node]
) -> Iterator[str]:
    labels = step.get("nodeSelector", {}).get("labels", {})
    allowed = [node for node in nodes if labels.items() <= node.labels.items()]
    if not allowed:
        wanted = ", ".join(f"{key}={value}" for key, value in labels.items())
        yield f"{name} needs a node with {wanted}; the cluster has none"
        return
    tolerations = step.get("tolerations", ())
    free = [node for node in allowed if not _in_the_way(node, tolerations)]
    if not free:
        taint = _in_the_way(allowed[0], tolerations)[0]
        yield (
            f"{name} tolerates the taints of none of the {len(allowed)} nodes that it may run on, "
            f"as {taint['key']}:{taint['effect']}"
        )
        return
    asked = _asked(executor)
    for what, (text, quantity) in asked.items():
        most = max(node.room.get(what, 0.0) for node in free)
        if quantity > most:
            yield (
                f"{name} asks for {text} of {what}; the most that one of the {len(free)} nodes it "
                f"may run on has is {most:.12g}"
            )
            return
    if not any(all(node.room.get(w, 0.0) >= q for w, (_, q) in asked.items()) for node in free):
        wanted = ", ".join(f"{text} of {what}" for what, (text, _) in asked.items())
        yield f"{name} asks for {wanted}; no node has all of it"


def _in_the_way(node: Node, tolerations: Any) -> list[Mapping[str, str]]:
    hard = [taint for taint in node.taints if taint["effect"] != "PreferNoSchedule"]
    return [taint for taint in hard if not _met(taint, tolerations)]


def _met(taint: Mapping[str, str], tolerations: Any) -> bool:
    # https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/
    return any(
        toleration.get("key", "") in ("", taint["key"])
        and toleration.get("effect", "") in ("", taint["effect"])
        and (
            toleration.get("operator") == "Exists"
            or toleration.get("value", "") == taint.get("value", "")
        )
        for toleration in tolerations
    )


def _asked(executor: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    container = executor.get("container", {}).get("resources", {})
    accelerator = container.get("accelerator", {})
    texts = {
        "cpu": container.get("resourceCpuRequest") or container.get("resourceCpuLimit"),
        "memory": container.get("resourceMemoryRequest") or container.get("resourceMemoryLimit"),
        accelerator.get("resourceType", ""): accelerator.get("resourceCount"),
    }
    asked = {}
    for what, text in texts.items():
        # Else it is an argument, known at run time only.
        if what and text and "{{" not in what + text:
            quantity = parse_quantity(text)
            assert quantity is not None, "read_package has checked it"
            asked[what] = (text, quantity)
    return asked
