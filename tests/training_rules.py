"""What a TFJob must be for the operator that runs it and for the program that it runs.

The operator is Kubeflow's training operator 1.9; its fields, and TF_CONFIG, are written here from
its custom resource definition and its sources
(https://github.com/kubeflow/training-operator, `manifests/base/crds/kubeflow.org_tfjobs.yaml` and
`pkg/controller.v1/tensorflow/tensorflow.go`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from manifest_rules import Doc, Manifests, namespace_of, rule, title

CONTAINER, PORT = "tensorflow", "tfjob-port"
"""Names by which the operator knows where TF_CONFIG goes, and the port that it names."""


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "additionalProperties": False}


_COUNT = {"type": "integer", "minimum": 0}
_REPLICA = _object(
    replicas=_COUNT,
    restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
    template={"type": "object"},
)
SPEC = _object(
    enableDynamicWorker={"type": "boolean"},
    successPolicy={"enum": ["", "AllWorkers"]},
    runPolicy=_object(
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=_COUNT,
        cleanPodPolicy={"enum": ["All", "Running", "None"]},
        managedBy={"type": "string"},
        schedulingPolicy={"type": "object"},
        suspend={"type": "boolean"},
        ttlSecondsAfterFinished=_COUNT,
    ),
    tfReplicaSpecs=_object(
        **dict.fromkeys(("Chief", "Master", "Worker", "PS", "Evaluator"), _REPLICA)
    ),
)
"""JSON Schema of a TFJob's spec, but for its pods."""


@rule
def training_jobs(manifests: Manifests) -> Iterator[str]:
    """A TFJob has fields that its operator knows, and values that our training can live with."""
    import jsonschema

    for doc in manifests.of("TFJob"):
        spec = doc["spec"]
        if doc["apiVersion"] != "kubeflow.org/v1":
            yield f"{title(doc)}: {doc['apiVersion']} has no such kind"
        for error in jsonschema.Draft202012Validator(SPEC).iter_errors(spec):
            yield f"{title(doc)}: {error.json_path}: {error.message}"
        if spec.get("successPolicy") != "AllWorkers":
            yield f"{title(doc)}: is done while workers run; set successPolicy: AllWorkers"
        for bound in ("activeDeadlineSeconds", "backoffLimit"):
            if bound not in spec.get("runPolicy", {}):
                yield f"{title(doc)}: has no {bound}"
        replicas = spec.get("tfReplicaSpecs", {})
        if set(replicas) != {"Worker"}:
            yield f"{title(doc)}: all processes must be workers"
        for replica in replicas.values():
            yield from (f"{title(doc)}: {fault}" for fault in _of_replica(replica))


def _of_replica(replica: Doc) -> Iterator[str]:
    if replica.get("restartPolicy") != "OnFailure":
        yield "a worker that another has left is not started again; set restartPolicy: OnFailure"
    if replica.get("replicas", 1) < 2:
        yield "one worker gets no TF_CONFIG; start it as a job of Kubernetes"
    pods = replica["template"]["spec"]
    if "restartPolicy" in pods:
        yield "the restart policy of its pods is overwritten"
    found = {container["name"]: container for container in pods["containers"]}
    if CONTAINER not in found:
        yield f"has no container {CONTAINER}"
        return
    container = found[CONTAINER]
    if PORT not in {port.get("name") for port in container.get("ports", ())}:
        yield f"container {CONTAINER} has no port {PORT}"
    if "TF_CONFIG" in {variable["name"] for variable in container.get("env", ())}:
        yield "TF_CONFIG is the operator's"


def tf_config(job: Doc, index: int) -> str:
    """The TF_CONFIG that the operator gives to worker `index` of a job."""
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    (port,) = (port["containerPort"] for port in container["ports"] if port["name"] == PORT)
    names = [f"{job['metadata']['name']}-worker-{i}" for i in range(worker["replicas"])]
    return json.dumps(
        {
            "cluster": {"worker": [f"{name}.{namespace_of(job)}.svc:{port}" for name in names]},
            "task": {"type": "worker", "index": index},
            "environment": "cloud",
        }
    )
