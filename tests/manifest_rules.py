"""What Kubernetes' schemas do not see in manifests: rules that our rendered overlays must meet.

Each rule gives the faults that it finds, as sentences that name the object.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

from coralline import __version__
from coralline.errors import UserError
from pipelines.cron import parse_cron
from pipelines.package import parse_image, parse_quantity

VERSIONS = ("1.35", "1.37")
"""Of Kubernetes: the oldest and the newest that the manifests are written for."""

WHY_PRIVILEGED = "coralline/why-privileged"
"""Annotation of pods that cannot keep to the pod security standard `restricted`: the reason."""

ROOT = Path(__file__).parents[1]

Doc = Mapping[str, Any]
Rule = Callable[["Manifests"], Iterator[str]]


@dataclass(frozen=True)
class Pod:
    """The pods of a workload.

    Attributes:
        owner: The workload.
        template: Their metadata and spec.
    """

    owner: Doc
    template: Doc

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def namespace(self) -> str:
        return namespace_of(self.owner)

    @property
    def labels(self) -> Mapping[str, str]:
        return self.template.get("metadata", {}).get("labels", {})

    @property
    def spec(self) -> Doc:
        return self.template["spec"]

    @property
    def containers(self) -> list[Doc]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def privileged(self) -> bool:
        return WHY_PRIVILEGED in self.template.get("metadata", {}).get("annotations", {})


@dataclass(frozen=True)
class Manifests:
    """Rendered manifests.

    Attributes:
        docs: Each an object.
        secrets: Keys of the secrets that the operator makes, by namespace and name.
    """

    docs: list[Doc]
    secrets: Mapping[tuple[str, str], set[str]] = field(default_factory=dict)

    def of(self, *kinds: str) -> list[Doc]:
        return [doc for doc in self.docs if doc["kind"] in kinds]

    def find(self, kind: str, namespace: str, name: str) -> Doc | None:
        for doc in self.of(kind):
            if (namespace_of(doc), doc["metadata"]["name"]) == (namespace, name):
                return doc
        return None

    @property
    def pods(self) -> list[Pod]:
        found = []
        for doc in self.docs:
            spec = doc.get("spec") or {}
            if doc["kind"] == "CronJob":
                spec = spec["jobTemplate"]["spec"]
            for owner in (spec, *spec.get("tfReplicaSpecs", {}).values()):
                if "template" in owner:
                    found.append(Pod(doc, owner["template"]))
        return found

    def selected(self, namespace: str, selector: Doc) -> list[Pod]:
        return [
            pod for pod in self.pods if pod.namespace == namespace and matches(selector, pod.labels)
        ]


def namespace_of(doc: Doc) -> str:
    return doc["metadata"].get("namespace", "default")


def title(doc: Doc) -> str:
    return f"{doc['kind']} {doc['metadata']['name']}"


def matches(selector: Doc, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects labels; one that asks for nothing selects everything."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for wanted in selector.get("matchExpressions", ()):
        there = labels.get(wanted["key"])
        met = {
            "In": there in wanted.get("values", ()),
            "NotIn": there not in wanted.get("values", ()),
            "Exists": there is not None,
            "DoesNotExist": there is None,
        }
        if not met[wanted["operator"]]:
            return False
    return True


def service_selector(service: Doc) -> Doc:
    return {"matchLabels": service["spec"]["selector"]}


RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


@rule
def schemas(manifests: Manifests) -> Iterator[str]:
    """Every field is one that Kubernetes knows, in each of VERSIONS; in training jobs too."""
    for doc in manifests.docs:
        parts = [doc]
        if doc["kind"] == "TFJob":
            parts = [
                {"apiVersion": "v1", "kind": "PodTemplate", "template": pod.template}
                for pod in manifests.pods
                if pod.owner is doc
            ]
        for part in parts:
            for version in VERSIONS:
                if fault := _schema_fault(json.dumps(part), version):
                    yield f"{title(doc)}: Kubernetes {version}: {fault}"


@cache
def _schema_fault(doc: str, version: str) -> str:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(json.loads(doc), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return f"knows no {error.kind} of {error.api_version}"
    return ""


@rule
def names(manifests: Manifests) -> Iterator[str]:
    """No object is there twice, and every namespace is there."""
    seen = set()
    for doc in manifests.docs:
        key = (doc["kind"], namespace_of(doc), doc["metadata"]["name"])
        if key in seen:
            yield f"{title(doc)} is there twice"
        seen.add(key)
    spaces = {doc["metadata"]["name"] for doc in manifests.of("Namespace")}
    for doc in manifests.docs:
        if doc["kind"] != "Namespace" and namespace_of(doc) not in spaces:
            yield f"{title(doc)} is in namespace {namespace_of(doc)}, which is not there"


@rule
def cron_expressions(manifests: Manifests) -> Iterator[str]:
    """A schedule has five fields that come true, a time zone, and no two runs at once."""
    for doc in manifests.of("CronJob"):
        spec = doc["spec"]
        try:
            # Kubeflow's expressions are Kubernetes' with seconds.
            parse_cron(f"0 {spec['schedule']}")
        except UserError as error:
            yield f"{title(doc)}: {error}"
        if spec.get("timeZone") not in available_timezones():
            yield f"{title(doc)}: time zone {spec.get('timeZone')!r} is not known"
        if spec.get("concurrencyPolicy") != "Forbid":
            yield f"{title(doc)}: a run may start beside another; set concurrencyPolicy: Forbid"
        if "startingDeadlineSeconds" not in spec:
            yield f"{title(doc)}: is given up after 100 misses; set startingDeadlineSeconds"


@rule
def restart_policies(manifests: Manifests) -> Iterator[str]:
    """Jobs end and are bounded; everything else is started again."""
    for pod in manifests.pods:
        policy = pod.spec.get("restartPolicy", "Always")
        if pod.owner["kind"] in ("Job", "CronJob"):
            if policy not in ("Never", "OnFailure"):
                yield f"{pod.name}: restartPolicy {policy}; a job's is Never or OnFailure"
            spec = pod.owner["spec"]
            spec = spec.get("jobTemplate", {}).get("spec", spec)
            for bound in ("backoffLimit", "activeDeadlineSeconds"):
                if bound not in spec:
                    yield f"{pod.name}: has no {bound}"
        elif policy != "Always":
            yield f"{pod.name}: restartPolicy {policy}; only Always is allowed"


@rule
def references(manifests: Manifests) -> Iterator[str]:
    """Config maps, secrets, claims, accounts and volumes that are named are there, with the key."""
    for pod in manifests.pods:
        account = pod.spec.get("serviceAccountName", "default")
        if manifests.find("ServiceAccount", pod.namespace, account) is None:
            yield f"{pod.name}: service account {account} is not there"
        for kind, name, keys in named_by(pod):
            there = _keys(manifests, kind, pod.namespace, name)
            if there is None:
                yield f"{pod.name}: {kind} {name} is not there"
            elif missing := keys - there:
                yield f"{pod.name}: {kind} {name} has no key {', '.join(sorted(missing))}"
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())}
        volumes |= {
            claim["metadata"]["name"] for claim in pod.owner["spec"].get("volumeClaimTemplates", ())
        }
        mounted = {m["name"] for c in pod.containers for m in c.get("volumeMounts", ())}
        for name in sorted(mounted - volumes):
            yield f"{pod.name}: volume {name} is mounted and not there"
        for name in sorted(volumes - mounted):
            yield f"{pod.name}: volume {name} is there and not mounted"
    for doc in manifests.of("StatefulSet"):
        if manifests.find("Service", namespace_of(doc), doc["spec"]["serviceName"]) is None:
            yield f"{title(doc)}: service {doc['spec']['serviceName']} is not there"


def named_by(pod: Pod) -> Iterator[tuple[str, str, set[str]]]:
    """Kind, name and keys of the config maps, secrets and claims that a pod needs."""
    for container in pod.containers:
        for source in container.get("envFrom", ()):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if key in source:
                    yield kind, source[key]["name"], set()
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                if key in source and not source[key].get("optional"):
                    yield kind, source[key]["name"], {source[key]["key"]}
    for volume in pod.spec.get("volumes", ()):
        if "configMap" in volume:
            items = {item["key"] for item in volume["configMap"].get("items", ())}
            yield "ConfigMap", volume["configMap"]["name"], items
        if "secret" in volume:
            items = {item["key"] for item in volume["secret"].get("items", ())}
            yield "Secret", volume["secret"]["secretName"], items
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], set()


def _keys(manifests: Manifests, kind: str, namespace: str, name: str) -> set[str] | None:
    if kind == "Secret":
        return manifests.secrets.get((namespace, name))
    found = manifests.find(kind, namespace, name)
    return None if found is None else {*found.get("data", {}), *found.get("binaryData", {})}


@rule
def hosts(manifests: Manifests) -> Iterator[str]:
    """URLs in the environment that name a host of the cluster lead to a service and its port."""
    for pod in manifests.pods:
        for container in pod.containers:
            for variable in container.get("env", ()):
                found = re.match(
                    r"\w+://([\w-]+)(?:\.([\w-]+))?\S*?:(\d+)", variable.get("value", "")
                )
                if found is None:
                    continue
                name, namespace, port = found[1], found[2] or pod.namespace, int(found[3])
                service = manifests.find("Service", namespace, name)
                if service is None:
                    yield f"{pod.name}: {variable['value']}: service {name} is not there"
                elif port not in {p["port"] for p in service["spec"]["ports"]}:
                    yield f"{pod.name}: {variable['value']}: service {name} has no port {port}"


@rule
def ports(manifests: Manifests) -> Iterator[str]:
    """Ports that are named by services, probes and policies are ports of the pods they mean."""

    def named(pods: list[Pod]) -> set[Any]:
        return {
            value
            for pod in pods
            for container in pod.containers
            for port in container.get("ports", ())
            for value in (port.get("name"), port["containerPort"])
        }

    for doc in manifests.of("Service"):
        there = named(
            manifests.selected(namespace_of(doc), {"matchLabels": doc["spec"]["selector"]})
        )
        for port in doc["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if target not in there:
                yield f"{title(doc)}: its pods have no port {target}"
    for pod in manifests.pods:
        for container in pod.containers:
            own = named([Pod(pod.owner, {"spec": {"containers": [container]}})])
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                target = container.get(kind, {}).get("httpGet", {}).get("port")
                if target is not None and target not in own:
                    yield f"{pod.name}: {kind}: {container['name']} has no port {target}"
    for doc in manifests.of("NetworkPolicy"):
        for direction, peers, allowed in _flows(doc):
            for target in (port["port"] for port in allowed):
                if not isinstance(target, str):
                    continue
                pods = (
                    manifests.selected(namespace_of(doc), doc["spec"]["podSelector"])
                    if direction == "ingress"
                    else _peers(manifests, doc, peers)
                )
                if target not in named(pods):
                    yield f"{title(doc)}: {direction}: no pod that it means has a port {target}"


def _flows(policy: Doc) -> Iterator[tuple[str, list[Doc], list[Doc]]]:
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for flow in policy["spec"].get(direction, ()):
            yield direction, flow.get(side, []), flow.get("ports", [])


def _peers(manifests: Manifests, policy: Doc, peers: list[Doc]) -> list[Pod]:
    return [
        pod
        for peer in peers
        for namespace in _namespaces(manifests, policy, peer)
        for pod in manifests.selected(namespace, peer.get("podSelector", {}))
    ]


def _namespaces(manifests: Manifests, policy: Doc, peer: Doc) -> list[str]:
    if "ipBlock" in peer:
        return []
    if "namespaceSelector" not in peer:
        return [namespace_of(policy)]
    return [
        doc["metadata"]["name"]
        for doc in manifests.of("Namespace")
        if matches(
            peer["namespaceSelector"],
            {
                "kubernetes.io/metadata.name": doc["metadata"]["name"],
                **doc["metadata"].get("labels", {}),
            },
        )
    ]


@rule
def selectors(manifests: Manifests) -> Iterator[str]:
    """Workloads own their own pods alone; what selects pods selects some."""
    for pod in manifests.pods:
        selector = pod.owner["spec"].get("selector")
        if selector is None:
            continue
        if not matches(selector, pod.labels):
            yield f"{pod.name}: its selector does not select its pods"
        for other in manifests.selected(pod.namespace, selector):
            if other.owner is not pod.owner:
                yield f"{pod.name}: its selector selects the pods of {other.name} too"
    for doc in manifests.of("Service", "PodDisruptionBudget"):
        is_service = doc["kind"] == "Service"
        selector = service_selector(doc) if is_service else doc["spec"]["selector"]
        count = len(manifests.selected(namespace_of(doc), selector))
        if count != 1:
            yield f"{title(doc)}: selects the pods of {count} workloads, not of one"
    for doc in manifests.of("NetworkPolicy"):
        if not manifests.selected(namespace_of(doc), doc["spec"]["podSelector"]):
            yield f"{title(doc)}: selects no pods"
        for direction, peers, _ in _flows(doc):
            for peer in peers:
                # Other namespaces have labels that are not known here.
                ours = not peer.get("namespaceSelector") or _namespaces(manifests, doc, peer)
                if "podSelector" in peer and not (ours and _peers(manifests, doc, [peer])):
                    yield f"{title(doc)}: {direction}: a peer selects no pods"


@rule
def network(manifests: Manifests) -> Iterator[str]:
    """Every pod is behind a policy for what comes in and one for what goes out."""
    for pod in manifests.pods:
        kinds = {
            kind
            for doc in manifests.of("NetworkPolicy")
            if namespace_of(doc) == pod.namespace
            and matches(doc["spec"]["podSelector"], pod.labels)
            for kind in doc["spec"]["policyTypes"]
        }
        for kind in sorted({"Ingress", "Egress"} - kinds):
            yield f"{pod.name}: no network policy of type {kind} selects it"


def may_speak(manifests: Manifests, source: Pod, target: Pod, port: int | str) -> bool:
    """Whether the policies let one pod open a connection to another's port."""

    def open_(direction: str, here: Pod, there: Pod) -> bool:
        policies = [
            doc
            for doc in manifests.of("NetworkPolicy")
            if direction.capitalize() in doc["spec"]["policyTypes"]
            and here in manifests.selected(namespace_of(doc), doc["spec"]["podSelector"])
        ]
        return not policies or any(
            there in _peers(manifests, doc, peers) and port in {p["port"] for p in allowed}
            for doc in policies
            for way, peers, allowed in _flows(doc)
            if way == direction
        )

    return open_("egress", source, target) and open_("ingress", target, source)


_LEVEL = "pod-security.kubernetes.io/enforce"
_VOLUMES = set(
    "configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret".split()
)


@rule
def security(manifests: Manifests) -> Iterator[str]:
    """The standard `restricted`, a read-only root, no token of the cluster; or a written reason.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    levels = {
        doc["metadata"]["name"]: doc["metadata"].get("labels", {}).get(_LEVEL)
        for doc in manifests.of("Namespace")
    }
    for name, level in levels.items():
        inside = [pod for pod in manifests.pods if pod.namespace == name]
        if level != "restricted" and not any(pod.privileged for pod in inside):
            yield f"Namespace {name}: enforces {level}; no pod in it says why"
    for doc in manifests.of("ServiceAccount"):
        if doc.get("automountServiceAccountToken") is not False:
            yield f"{title(doc)}: its token is given to pods"
    for pod in manifests.pods:
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.name}: gets a token of the cluster"
        if pod.spec.get("serviceAccountName", "default") == "default":
            yield f"{pod.name}: has no service account of its own"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield f"{pod.name}: has {key}"
        for volume in pod.spec.get("volumes", ()):
            if not volume.keys() - {"name"} <= _VOLUMES and not pod.privileged:
                kind = "its node's files" if "hostPath" in volume else f"volume {volume['name']}"
                yield f"{pod.name}: mounts {kind}; write why in {WHY_PRIVILEGED}"
        for container in pod.containers:
            settings = {
                **pod.spec.get("securityContext", {}),
                **container.get("securityContext", {}),
            }
            for fault in _unsafe(settings, pod.privileged):
                yield f"{pod.name}: container {container['name']}: {fault}"
            if any("hostPort" in port for port in container.get("ports", ())):
                yield f"{pod.name}: container {container['name']}: has a port of its node"
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if "host" in container.get(kind, {}).get("httpGet", {}):
                    yield f"{pod.name}: container {container['name']}: {kind} names a host"
            if not any(m["mountPath"] == "/tmp" for m in container.get("volumeMounts", ())):
                yield f"{pod.name}: container {container['name']}: /tmp cannot be written"


def _unsafe(settings: Doc, privileged: bool) -> Iterator[str]:
    if settings.get("runAsNonRoot") is not True or settings.get("runAsUser", 0) == 0:
        yield "may run as root"
    if settings.get("readOnlyRootFilesystem") is not True:
        yield "its root file system can be written"
    if settings.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if settings.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if settings.get("capabilities", {}).get("add"):
        yield "adds capabilities"
    if settings.get("allowPrivilegeEscalation") is not False and not privileged:
        yield "may gain privileges"
    if settings.get("privileged") and not privileged:
        yield f"is privileged; write why in {WHY_PRIVILEGED}"


@rule
def secrets(manifests: Manifests) -> Iterator[str]:
    """No secret is written down."""
    for doc in manifests.of("Secret"):
        yield f"{title(doc)}: is in the tree"
    for pod in manifests.pods:
        for container in pod.containers:
            for variable in container.get("env", ()):
                name, value = variable["name"], variable.get("value", "")
                secret = re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", name)
                if (secret and value and not name.endswith("_FILE")) or re.search(
                    r"://\S+:\S+@", value
                ):
                    yield f"{pod.name}: {name} is written in the manifest"


@rule
def resources(manifests: Manifests) -> Iterator[str]:
    """Every container asks for processors and memory, and has a limit of both; volumes too."""
    for pod in manifests.pods:
        for container in pod.containers:
            at = f"{pod.name}: container {container['name']}"
            asked = container.get("resources", {}).get("requests", {})
            limits = container.get("resources", {}).get("limits", {})
            for what in ("cpu", "memory"):
                for end, there in (("request", asked), ("limit", limits)):
                    if what not in there:
                        yield f"{at}: has no {what} {end}"
            for what, quantity in (*asked.items(), *limits.items()):
                if not parse_quantity(str(quantity)):
                    yield f"{at}: {what} {quantity!r} is not a quantity"
            for what in asked.keys() & limits.keys():
                first, most = (parse_quantity(str(q[what])) for q in (asked, limits))
                if first and most and first > most:
                    yield f"{at}: the {what} request is above the limit"
        for volume in pod.spec.get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.name}: volume {volume['name']} may fill its node's disk"


@rule
def images(manifests: Manifests) -> Iterator[str]:
    """Images have a version: ours the project's, others a digest."""
    for pod in manifests.pods:
        for container in pod.containers:
            name = container["image"]
            try:
                image = parse_image(name)
            except UserError as error:
                yield f"{pod.name}: {error}"
                continue
            if image.repository.rpartition("/")[2].startswith("coralline-"):
                if image.version != __version__:
                    yield f"{pod.name}: image {name} is not of version {__version__}"
            elif not image.version.startswith("sha256:"):
                yield f"{pod.name}: image {name} has no digest"


@rule
def probes(manifests: Manifests) -> Iterator[str]:
    """What a service leads to says whether it is ready and alive."""
    for doc in manifests.of("Service"):
        for pod in manifests.selected(namespace_of(doc), service_selector(doc)):
            for container in pod.spec["containers"]:
                for kind in ("readinessProbe", "livenessProbe"):
                    if kind not in container:
                        yield f"{pod.name}: container {container['name']} has no {kind}"


@rule
def budgets(manifests: Manifests) -> Iterator[str]:
    """What can be moved between nodes says how much of it may be away."""
    for pod in manifests.pods:
        if pod.owner["kind"] not in ("Deployment", "StatefulSet"):
            continue
        if not any(
            pod in manifests.selected(namespace_of(doc), doc["spec"]["selector"])
            for doc in manifests.of("PodDisruptionBudget")
        ):
            yield f"{pod.name}: no disruption budget selects it"
    for doc in manifests.of("PodDisruptionBudget"):
        for pod in manifests.selected(namespace_of(doc), doc["spec"]["selector"]):
            least = doc["spec"].get("minAvailable", 0)
            replicas = pod.owner["spec"].get("replicas", 1)
            if doc["spec"].get("maxUnavailable") in (0, "0%") or least in (replicas, "100%"):
                yield f"{title(doc)}: keeps the nodes of {pod.name} from being drained"


@rule
def commands(manifests: Manifests) -> Iterator[str]:
    """Commands of ours are verbs that exist, with options that they take."""
    for pod in manifests.pods:
        for container in pod.containers:
            if not _ours(container):
                continue
            command = [*container.get("command", ()), *container.get("args", ())]
            if command[:1] == ["sleep"]:
                continue
            if fault := command_fault(command):
                yield f"{pod.name}: {shlex.join(command)}: {fault}"
            names = {variable["name"] for variable in container.get("env", ())}
            for name in re.findall(r"\$\(([^)]*)\)", " ".join(command)):
                if name not in names:
                    yield f"{pod.name}: {shlex.join(command)}: {name} is not in the environment"


def _ours(container: Doc) -> bool:
    return "coralline-" in container["image"]


def command_fault(command: list[str]) -> str:
    """Why a command of ours cannot be started, or nothing."""
    import click
    import typer

    if not command or command[0] not in ("coralline", "mlflow"):
        return "is not a command of ours"
    # Typer may bring a Click of its own.
    usage_errors = (click.ClickException, typer.exceptions.TyperException)
    verb, words = _program(command[0]), command[1:]
    context = None
    try:
        while True:
            verb.no_args_is_help = False
            context = verb.make_context(verb.name, list(words), parent=context)
            if not hasattr(verb, "resolve_command"):
                return ""
            words = [*context._protected_args, *context.args]
            if not words:
                return "needs a verb"
            _, verb, words = verb.resolve_command(context, words)
    except usage_errors as error:
        return error.format_message()


@cache
def _program(name: str) -> Any:
    import typer

    if name == "mlflow":
        from mlflow.cli import cli

        return cli
    from coralline.cli import main

    main._add_verbs()
    return typer.main.get_command(main.app)


_OTHERS = {"NODE": "the runner's command", "TF_NUM_INTRAOP_THREADS": "TensorFlow"}
"""Names in our containers' environments that neither our code nor MLflow reads, and who does."""


@rule
def environment(manifests: Manifests) -> Iterator[str]:
    """Variables in our containers' environments are read by somebody."""
    for pod in manifests.pods:
        for container in pod.containers:
            if not _ours(container):
                continue
            for variable in container.get("env", ()):
                name = variable["name"]
                if name not in _OTHERS and name not in _variables():
                    yield f"{pod.name}: nothing reads {name}"


@cache
def _variables() -> frozenset[str]:
    import mlflow

    packages = ("coralline", "components", "hardware_lab", "pipelines", "training")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    installed = Path(mlflow.__file__).parent
    files += [installed / "environment_variables.py", *(installed / "cli").glob("*.py")]
    text = "\n".join(file.read_text() for file in files)
    # MLflow reaches S3 through boto3.
    aws = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    return frozenset(re.findall(r"""["']([A-Z][A-Z0-9_]{3,})["']""", text)) | aws


def documented_secrets(text: str) -> dict[tuple[str, str], set[str]]:
    """Keys of the secrets that a document has its reader make with kubectl."""
    found: dict[tuple[str, str], set[str]] = {}
    for line in re.findall(r"kubectl .*create secret .*", text.replace("\\\n", " ")):
        words = shlex.split(line)
        namespace = words[words.index("-n") + 1]
        name = words[words.index("generic") + 1]
        keys = {
            word.partition("=")[2].partition("=")[0]
            for word in words
            if word.startswith(("--from-literal=", "--from-file="))
        }
        # One that is made in two ways has what both give it.
        found[namespace, name] = keys & found.get((namespace, name), keys)
    return found
