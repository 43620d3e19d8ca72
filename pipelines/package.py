"""What a compiled pipeline must hold before it is sent: KFP takes more than it can run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coralline.errors import UserError, read_text
from pipelines.acceptance import Spec, check_size, refused

_IMAGE = re.compile(
    r"(?P<name>(?:(?P<registry>(?:[\w-]+\.)+[\w-]+(?::\d+)?|localhost(?::\d+)?|[\w-]+:\d+)/)?"
    r"(?P<repository>[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
    r"(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*))"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
"""The grammar of references at https://pkg.go.dev/github.com/distribution/reference."""

_UNITS = {"": 1, "m": 1e-3} | {
    prefix + suffix: base**power
    for base, suffix in ((1000, ""), (1024, "i"))
    for power, prefix in enumerate("kMGTPE" if base == 1000 else "KMGTPE", start=1)
}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([a-zA-Z]*)", re.ASCII)
"""Quantities at https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/,
without exponents, which the SDK does not write."""


@dataclass(frozen=True)
class Image:
    """A container image.

    Attributes:
        reference: As the pipeline names it.
        registry: Host and port; `registry-1.docker.io` where none is named.
        repository: Path in the registry.
        version: Tag or digest.
    """

    reference: str
    registry: str
    repository: str
    version: str


def check_package(file: Path) -> list[Image]:
    """Refuse a compiled pipeline that cannot run.

    Returns:
        The images of its steps.

    Raises:
        UserError: It is not KFP's YAML, a reference in it leads nowhere, a server would refuse
            it, an image has no version or cannot be parsed, or a resource request is malformed.
    """
    images = (_images(executor) for executor in executors(read_package(file)[0]).values())
    return [parse_image(name) for name in sorted({name for names in images for name in names})]


def read_package(file: Path) -> list[Spec]:
    """The pipeline and the platforms of a compiled pipeline.

    Raises:
        UserError: As `check_package`, but for the images.
    """
    import yaml

    check_size(file)
    text = read_text(file, "a compiled pipeline")
    try:
        documents = [document for document in yaml.safe_load_all(text) if document]
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is not YAML: {str(error).splitlines()[0]}") from None
    _check_form(file, documents)
    faults = [*refused(documents), *_dangling(documents), *_malformed(documents[0])]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{file}: {faults[0]}{more}; compile the pipeline anew")
    return documents


def parse_image(reference: str) -> Image:
    """Read an image's reference.

    Raises:
        UserError: It cannot be parsed, or has neither tag nor digest.
    """
    found = _IMAGE.fullmatch(reference)
    if found is None:
        raise UserError(
            f"image {reference!r} cannot be parsed; write [REGISTRY/]NAME:TAG in lower case, set "
            "with $CORALLINE_IMAGE"
        )
    version = found["digest"] or found["tag"]
    if version is None:
        raise UserError(
            f"image {reference!r} has no tag: what runs would change unseen; write "
            f"{reference}:VERSION, set with $CORALLINE_IMAGE"
        )
    registry, repository = found["registry"], found["repository"]
    if registry in (None, "docker.io"):
        registry = "registry-1.docker.io"
        repository = repository if "/" in repository else f"library/{repository}"
    return Image(reference, registry, repository, version)


def _check_form(file: Path, documents: list[Any]) -> None:
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2
    from kfp.pipeline_spec import pipeline_spec_pb2

    def parsed(what: str, document: Any, message: Callable[[], Any]) -> None:
        try:
            json_format.ParseDict(document, message())
        except (json_format.ParseError, AttributeError, TypeError) as error:
            raise UserError(
                f"{file}: {what} is not what KFP reads: {str(error).splitlines()[0]}; make it "
                "with `coralline pipeline compile`"
            ) from None

    if not documents or not all(isinstance(document, dict) for document in documents):
        raise UserError(f"{file}: holds no pipeline; make it with `coralline pipeline compile`")
    spec = documents[0]
    parsed("the pipeline", spec, pipeline_spec_pb2.PipelineSpec)
    parsed("deploymentSpec", spec.get("deploymentSpec"), pipeline_spec_pb2.PipelineDeploymentConfig)
    for component in (spec.get("root", {}), *spec.get("components", {}).values()):
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if not task.get("componentRef", {}).get("name"):
                raise UserError(f"{file}: task {name} has no component; compile it anew")
    if "root" not in spec:
        raise UserError(f"{file}: has no root; make it with `coralline pipeline compile`")
    for platform in documents[1:]:
        parsed("the platform", platform, pipeline_spec_pb2.PlatformSpec)
    for name, step in kubernetes_settings(documents).items():
        message = kubernetes_executor_config_pb2.KubernetesExecutorConfig
        parsed(f"the platform of {name}", step, message)


def executors(pipeline: Spec) -> Spec:
    """The steps' containers by name."""
    found: Spec = pipeline["deploymentSpec"].get("executors", {})
    return found


def kubernetes_settings(documents: list[Spec]) -> dict[str, Any]:
    """What kfp-kubernetes set for each step."""
    steps: dict[str, Any] = {}
    for document in documents[1:]:
        platform = document.get("platforms", {}).get("kubernetes", {})
        steps |= platform.get("deploymentSpec", {}).get("executors", {})
    return steps


def _images(executor: Spec) -> Iterator[str]:
    image = executor.get("container", {}).get("image")
    if image is not None and "{{" not in image:  # else known at run time only
        yield image


def _dangling(documents: list[Spec]) -> Iterator[str]:
    spec = documents[0]
    components, containers = spec.get("components", {}), executors(spec)
    for name in kubernetes_settings(documents).keys() - containers.keys():
        yield f"the platform has settings for {name}, which is not there"
    for name, component in components.items():
        label = component.get("executorLabel")
        if label is not None and label not in containers:
            yield f"{name} runs {label}, which is not there"
    for name, component in {"root": spec["root"], **components}.items():
        if "dag" in component:
            yield from _dangling_in(name, component, components)


def _dangling_in(where: str, component: Spec, components: Spec) -> Iterator[str]:
    tasks = component["dag"].get("tasks", {})

    def gives(producer: str, kind: str, key: str) -> bool:
        made_by = components.get(tasks.get(producer, {}).get("componentRef", {}).get("name"), {})
        return key in made_by.get("outputDefinitions", {}).get(kind, {})

    for name, task in tasks.items():
        at = f"{where}: task {name}"
        if task["componentRef"]["name"] not in components:
            yield f"{at} is of {task['componentRef']['name']}, which is not there"
        for other in set(task.get("dependentTasks", ())) - tasks.keys():
            yield f"{at} waits for {other}, which is not there"
        for kind, one in (("parameters", "Parameter"), ("artifacts", "Artifact")):
            for key, source in task.get("inputs", {}).get(kind, {}).items():
                outer = source.get(f"componentInput{one}")
                defined = component.get("inputDefinitions", {}).get(kind, {})
                if outer is not None and outer not in defined:
                    yield f"{at} reads {outer} as {key}, which {where} does not have"
                inner = source.get(f"taskOutput{one}")
                if inner is not None:
                    wanted = inner["producerTask"], kind, inner[f"output{one}Key"]
                    if not gives(*wanted):
                        yield f"{at} reads {wanted[2]} of {wanted[0]} as {key}: no such output"
    outputs = component["dag"].get("outputs", {})
    for kind, one in (("parameters", "Parameter"), ("artifacts", "Artifact")):
        for key, output in outputs.get(kind, {}).items():
            for source in _sources(output):
                if not gives(source["producerSubtask"], kind, source[f"output{one}Key"]):
                    producer = source["producerSubtask"]
                    yield f"{where}: output {key} comes from {producer}: no such output"


def _sources(output: Spec) -> Iterator[Spec]:
    yield from output.get("artifactSelectors", ())
    if "valueFromParameter" in output:
        yield output["valueFromParameter"]
    yield from output.get("valueFromOneof", {}).get("parameterSelectors", ())


def _malformed(spec: Spec) -> Iterator[str]:
    for name, executor in executors(spec).items():
        room = executor.get("container", {}).get("resources", {})
        for what in ("Cpu", "Memory"):
            asked: dict[str, float] = {}
            for end in ("Request", "Limit"):
                text = room.get(f"resource{what}{end}")
                if text is None or "{{" in text:
                    continue
                value = parse_quantity(text)
                if value is None or value <= 0:
                    asks = f"{what.lower()} {end.lower()} {text!r}"
                    yield f"{name}: {asks} is not a quantity like 500m or 2Gi"
                else:
                    asked[end] = value
            if asked.get("Request", 0) > asked.get("Limit", float("inf")):
                yield f"{name}: the {what.lower()} request is above the limit"
        count = room.get("accelerator", {}).get("resourceCount")
        if count is not None and "{{" not in count and not (count.isdigit() and int(count) > 0):
            yield f"{name}: accelerator count {count!r} is not a positive number"


def parse_quantity(text: str) -> float | None:
    """What a quantity as `500m` or `2Gi` stands for, or None where it is none."""
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in _UNITS:
        return None
    return float(found[1]) * _UNITS[found[2]]


def find_image(image: Image) -> bool | None:
    """Whether the registry has an image; None where it does not say.

    Asks without credentials, so that a private image is not seen.
    """
    import urllib3

    scheme = "http" if image.registry.split(":")[0] in ("localhost", "127.0.0.1") else "https"
    url = f"{scheme}://{image.registry}/v2/{image.repository}/manifests/{image.version}"
    accept = ", ".join(
        f"application/vnd.{kind}+json"
        for kind in (
            "oci.image.index.v1",
            "oci.image.manifest.v1",
            "docker.distribution.manifest.list.v2",
            "docker.distribution.manifest.v2",
        )
    )
    headers = {"Accept": accept}
    pool = urllib3.PoolManager(timeout=10.0, retries=urllib3.Retry(1, status=0))
    try:
        answer = pool.request("HEAD", url, headers=headers)
        if answer.status == 401:
            # https://distribution.github.io/distribution/spec/auth/token/
            challenge = dict(
                re.findall(r'(\w+)="([^"]*)"', answer.headers.get("WWW-Authenticate", ""))
            )
            scope = {key: challenge[key] for key in ("service", "scope") if key in challenge}
            given = pool.request("GET", challenge["realm"], fields=scope).json()
            token = given.get("token") or given["access_token"]
            answer = pool.request(
                "HEAD", url, headers={**headers, "Authorization": f"Bearer {token}"}
            )
    except (urllib3.exceptions.HTTPError, KeyError, ValueError):
        return None
    return {200: True, 404: False}.get(answer.status)
