"""What a Kubeflow Pipelines server refuses, though KFP's SDK takes it.

Read from the source of the server (https://github.com/kubeflow/pipelines); none has been run:

- backend/src/apiserver/template/v2_template.go: schema, name, root, one pipeline and one platform
- backend/src/apiserver/server/util.go: the size of a file
- backend/src/apiserver/validation/length.go: lengths of names
- backend/src/v2/compiler/visitor.go: reserved names, cycles, kinds of executors
- backend/src/v2/compiler/argocompiler/dag.go: iterators, importers, groups without tasks

and from the validation of Argo Workflows, to which it hands what it has made of a pipeline
(https://github.com/argoproj/argo-workflows, workflow/validate).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coralline.errors import UserError

Spec = Mapping[str, Any]

SCHEMA = "2.1.0"
"""The only version of a pipeline's form that it takes."""

MAX_BYTES = 32 * 2**20
"""Of a compiled pipeline."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""Kubernetes': the server makes the names of workflows from a pipeline's."""

_FIELD = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9]*")
_FIELD_CHARACTERS = 128
"""Argo's, of templates and tasks, which the server names after components and tasks."""

_PIPELINE_CHARACTERS = 114
"""127 for a version's name, less our digits at its end."""

_EXPERIMENT_CHARACTERS = 128


def check_names(pipeline: str, experiment: str) -> None:
    """Refuse names that the server does not take.

    Raises:
        UserError: One of them.
    """
    if not _NAME.fullmatch(pipeline) or len(pipeline) > _PIPELINE_CHARACTERS:
        raise UserError(
            f"pipeline name {pipeline!r}: use at most {_PIPELINE_CHARACTERS} lower-case letters, "
            "digits, - and ., with a letter or digit first and last; rename the file"
        )
    if not 0 < len(experiment.encode()) <= _EXPERIMENT_CHARACTERS:
        raise UserError(f"--experiment: use 1 to {_EXPERIMENT_CHARACTERS} bytes")


def check_size(file: Path) -> None:
    """Refuse a file that is too large.

    Raises:
        UserError: It is.
    """
    if file.is_file() and file.stat().st_size > MAX_BYTES:
        raise UserError(f"{file}: is larger than {MAX_BYTES // 2**20} MiB, which no server takes")


def refused(documents: Sequence[Spec]) -> Iterator[str]:
    """What a server would refuse in the documents of a compiled pipeline, which are well formed."""
    spec, *platforms = documents
    components = spec.get("components", {})
    if spec.get("schemaVersion") != SCHEMA:
        yield f"schemaVersion is {spec.get('schemaVersion')!r}, and Kubeflow takes {SCHEMA} alone"
    if not _NAME.fullmatch(spec.get("pipelineInfo", {}).get("name", "")):
        name = spec.get("pipelineInfo", {}).get("name")
        yield f"pipelineInfo.name {name!r} is not lower-case letters, digits, - and ."
    if sum("kubernetes" in platform.get("platforms", {}) for platform in platforms) > 1:
        yield "has settings for Kubernetes in more than one document"
    if "root" in components:
        yield "a component is called root, which is reserved"
    yield from _executors(spec)
    yield from _cycles(spec["root"], components, ())
    for name, component in {"root": spec["root"], **components}.items():
        if "dag" in component:
            yield from _tasks(name, component["dag"].get("tasks", {}), spec)
        elif "executorLabel" not in component:
            yield f"{name} has neither tasks nor an executor"


def _executors(spec: Spec) -> Iterator[str]:
    for name, executor in spec["deploymentSpec"].get("executors", {}).items():
        if not executor.keys() & {"container", "importer"}:
            kind = next(iter(executor), "nothing")
            yield f"{name} is a {kind}, and Kubeflow runs containers and importers alone"


def _cycles(component: Spec, components: Spec, path: tuple[str, ...]) -> Iterator[str]:
    for task in component.get("dag", {}).get("tasks", {}).values():
        name = task["componentRef"]["name"]
        if name in path:
            yield f"{' -> '.join((*path, name))} goes round in a circle"
            return
        yield from _cycles(components.get(name, {}), components, (*path, name))


def _tasks(where: str, tasks: Spec, spec: Spec) -> Iterator[str]:
    if all(_ends(task) for task in tasks.values()):
        yield f"{where} has no task but for what is done at its end"
    for name, task in tasks.items():
        component = task["componentRef"]["name"]
        if "artifactIterator" in task:
            yield f"{where}: task {name} loops over artifacts; Kubeflow loops over parameters alone"
        made_of = spec.get("components", {}).get(component, {})
        label = made_of.get("executorLabel")
        executor = spec["deploymentSpec"].get("executors", {}).get(label, {})
        if "importer" in executor and task.get("triggerPolicy", {}).get("condition"):
            yield f"{where}: task {name} imports under a condition, which Kubeflow does not"
        made = [f"{name}-driver", *([component] if "dag" in made_of else ())]
        if "parameterIterator" in task:
            made += [f"{component}-{name}-iterator", f"{component}-iteration"]
        for field in made:
            if not _FIELD.fullmatch(field) or len(field) > _FIELD_CHARACTERS:
                yield (
                    f"{where}: task {name} becomes {field!r} in Argo, which takes at most "
                    f"{_FIELD_CHARACTERS} letters, digits and -"
                )


def _ends(task: Spec) -> bool:
    return bool(task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED")
