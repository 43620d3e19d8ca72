"""What the steps of a pipeline ask of a cluster. A run on this machine leaves all of it out."""

from __future__ import annotations

import os

from kfp import dsl, kubernetes
from kfp.dsl import pipeline_context

from components.failures import PIPELINE
from components.steps import EXECUTION
from coralline.errors import UserError

MLFLOW_SECRET = "coralline-mlflow"
"""Secret with the key `uri` of the tracking server, and `username` and `password` if it asks."""

S3_SECRET = "coralline-s3"
"""Secret with `access-key`, `secret-key` and `endpoint`; only for an MLflow server whose
clients reach its artifact store themselves."""

LAB_SECRET = "coralline-lab"
"""Secret with the `url` of the lab's service and a `token` that may submit."""

ACCELERATOR = "CORALLINE_ACCELERATOR"
"""Environment variable, read when a pipeline is compiled: RESOURCE or RESOURCE=COUNT, the device
plugin's resource that the measuring step asks for, as in `smarter-devices/apex_0=2`."""

NODE_SELECTOR = "CORALLINE_NODE_SELECTOR"
"""Likewise: LABEL=VALUE of the nodes that the measuring step may run on."""

TOLERATION = "CORALLINE_TOLERATION"
"""Likewise: KEY of the NoSchedule taint that the measuring step tolerates."""


def needs(
    task: dsl.PipelineTask, *, cpu: str, memory: str, minutes: int, tracking: bool = False
) -> dsl.PipelineTask:
    """Reserve room for a step, bound its time, and tell it what it is part of and where to say so.

    The pipeline's values leave room above the peaks of a run of its default models: 1.0 GiB for
    training, 0.4 GiB for planning, 0.3 GiB for each validation, 0.3 GiB for the rest.

    Args:
        cpu: Reserved, with no limit: a throttled solver or measurement tells a wrong time.
        memory: Reserved, and the limit.
        minutes: After which the step's pod is ended.
        tracking: Whether the step writes to MLflow. Without the secret its pod then does not
            start: a record in a pod's own files would be lost. Other steps do so only to leave
            why they failed.
    """
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
    # The label that Kubeflow puts on the pod; as an argument it would keep the step from the cache.
    kubernetes.use_field_path_as_env(task, EXECUTION, "metadata.labels['pipeline/runid']")
    task.set_env_variable(PIPELINE, pipeline_context.Pipeline.get_default_pipeline().name)
    _give_tracking(task, required=tracking)
    return kubernetes.set_timeout(task, 60 * minutes)


def may_retry(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Try a step twice more, from its beginning.

    For what needs something outside the cluster, which may be away for a while, and for the many
    steps of a loop, where one of their nodes may be: doing them again does no harm. Wrong input
    fails three times.
    """
    return task.set_retry(
        2, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="300s"
    )


def with_lab(task: dsl.PipelineTask, *, required: bool = True) -> dsl.PipelineTask:
    """Give a step the lab's address.

    Args:
        required: The step's pod does not start without the secret: what the lab remembers must
            outlive the pod. Else a step without it uses boards of its own pod.
    """
    return kubernetes.use_secret_as_env(
        task,
        LAB_SECRET,
        {"url": "CORALLINE_LAB", "token": "CORALLINE_LAB_TOKEN"},
        optional=not required,
    )


def near_boards(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Send a step to nodes with boards, where the environment says which.

    Raises:
        UserError: One of the environment variables is malformed.
    """
    if wanted := os.environ.get(ACCELERATOR):
        resource, _, count = wanted.partition("=")
        if "/" not in resource or not (count or "1").isdigit() or int(count or 1) < 1:
            raise UserError(
                f"{ACCELERATOR}={wanted}: write VENDOR/RESOURCE or VENDOR/RESOURCE=COUNT"
            )
        task.set_accelerator_type(resource).set_accelerator_limit(int(count or 1))
    if wanted := os.environ.get(NODE_SELECTOR):
        label, _, value = wanted.partition("=")
        if not (label and value):
            raise UserError(f"{NODE_SELECTOR}={wanted}: write LABEL=VALUE")
        kubernetes.add_node_selector(task, label, value)
    if wanted := os.environ.get(TOLERATION):
        kubernetes.add_toleration(task, key=wanted, operator="Exists", effect="NoSchedule")
    return task


def _give_tracking(task: dsl.PipelineTask, required: bool) -> None:
    """Give a step MLflow's address and credentials."""
    kubernetes.use_secret_as_env(
        task, MLFLOW_SECRET, {"uri": "MLFLOW_TRACKING_URI"}, optional=not required
    )
    kubernetes.use_secret_as_env(
        task,
        MLFLOW_SECRET,
        {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"},
        optional=True,
    )
    if required:
        kubernetes.use_secret_as_env(
            task,
            S3_SECRET,
            {
                "access-key": "AWS_ACCESS_KEY_ID",
                "secret-key": "AWS_SECRET_ACCESS_KEY",
                "endpoint": "MLFLOW_S3_ENDPOINT_URL",
            },
            optional=True,
        )
