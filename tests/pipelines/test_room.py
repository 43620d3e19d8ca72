from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from coralline.errors import DeviceError, UserError
from pipelines.room import Cluster, check_room

GOLDEN = Path(__file__).parents[1] / "golden" / "respect.yaml"

Json = dict[str, Any]


def _node(cpu: str = "8", memory: str = "16374204Ki", **more: Any) -> Json:
    room = {"cpu": cpu, "memory": memory, **more.pop("room", {})}
    return {
        "metadata": {"labels": more.pop("labels", {})},
        "spec": more,
        "status": {"allocatable": room},
    }


class _Kubernetes:
    """The part of Kubernetes' API that is asked, with one user's token."""

    def __init__(self) -> None:
        self.nodes = [_node()]
        self.objects = {"secrets/coralline-mlflow", "serviceaccounts/runner"}
        self.refused = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.headers["Authorization"] == "Bearer given"
                status, answer = 200, outer.answer(self.path, self.headers["Accept"])
                if outer.refused and outer.refused in self.path:
                    status = 403
                elif answer is None:
                    status = 404
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(answer or {}).encode())

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def answer(self, path: str, accept: str) -> Json | None:
        if path == "/api/v1/nodes":
            return {"kind": "NodeList", "items": self.nodes}
        prefix = "/api/v1/namespaces/kubeflow/"
        assert path.startswith(prefix)
        assert "as=PartialObjectMetadata" in accept, "what a secret holds is none of its business"
        return {"metadata": {}} if path.removeprefix(prefix) in self.objects else None


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Kubernetes]:
    found = _Kubernetes()
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{found.server.server_port}"
    config = {
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
        "clusters": [{"name": "lab", "cluster": {"server": address}}],
        "users": [{"name": "me", "user": {"token": "given"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    # Read by the client when it is imported, so that the file's name cannot come by environment.
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    yield found
    found.server.shutdown()
    found.server.server_close()


def _pipeline(tmp_path: Path, change: Callable[[Json, Json], object]) -> Path:
    """Ours, with the measuring step's resources and settings changed."""
    documents = list(yaml.safe_load_all(GOLDEN.read_text()))
    spec = documents[0]["deploymentSpec"]["executors"]["exec-dispatch"]["container"]["resources"]
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    change(spec, executors["exec-dispatch"])
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return file


def _accelerated(room: Json, settings: Json) -> None:
    room["accelerator"] = {"resourceType": "smarter-devices/apex_0", "resourceCount": "2"}


def _pinned(room: Json, settings: Json) -> None:
    settings["nodeSelector"] = {"labels": {"coralline/board": "pcie"}}
    settings["tolerations"] = [
        {"key": "coralline/board", "operator": "Exists", "effect": "NoSchedule"}
    ]


def _both(room: Json, settings: Json) -> None:
    _accelerated(room, settings)
    _pinned(room, settings)


APEX = {"smarter-devices/apex_0": "2"}
PCIE = {"coralline/board": "pcie"}
TAINT = {"key": "coralline/board", "value": "pcie", "effect": "NoSchedule"}


def test_our_own_pipeline_has_room(kubernetes: _Kubernetes) -> None:
    check_room(GOLDEN, Cluster("lab"), "kubeflow", "runner")


def test_a_node_with_boards_is_enough(kubernetes: _Kubernetes, tmp_path: Path) -> None:
    kubernetes.nodes.append(_node(labels=PCIE, taints=[TAINT], room=APEX))
    check_room(_pipeline(tmp_path, _both), Cluster("lab"), "kubeflow")


@pytest.mark.parametrize(
    ("change", "node", "message"),
    [
        (lambda room, _: room.update(resourceCpuRequest="64"), _node(), "64 of cpu.* has is 8$"),
        (
            lambda room, _: room.update(resourceMemoryRequest="20Gi", resourceMemoryLimit="20Gi"),
            _node(memory="16Gi"),
            "exec-dispatch asks for 20Gi of memory; the most .* is 17179869184$",
        ),
        (_accelerated, _node(), "asks for 2 of smarter-devices/apex_0; .* has is 0$"),
        (_accelerated, _node(room={"smarter-devices/apex_0": "1"}), "2 of smarter-.* has is 1$"),
        (_pinned, _node(), "needs a node with coralline/board=pcie; the cluster has none"),
        (
            _both,
            _node(labels=PCIE, room=APEX, taints=[{"key": "gpu", "effect": "NoExecute"}]),
            "tolerates the taints of none of the 1 nodes that it may run on, as gpu:NoExecute",
        ),
    ],
)
def test_what_no_node_has_is_named(
    change: Callable[[Json, Json], object],
    node: Json,
    message: str,
    kubernetes: _Kubernetes,
    tmp_path: Path,
) -> None:
    kubernetes.nodes = [node]
    with pytest.raises(UserError, match=message):
        check_room(_pipeline(tmp_path, change), Cluster("lab"), "kubeflow")


def test_no_one_node_has_it_all(kubernetes: _Kubernetes, tmp_path: Path) -> None:
    kubernetes.nodes = [_node(), _node(cpu="100m", room=APEX)]
    with pytest.raises(UserError, match=r"of cpu, .*, 2 of smarter-\S+; no node has all of it"):
        check_room(_pipeline(tmp_path, _accelerated), Cluster("lab"), "kubeflow")


def test_a_preference_keeps_nothing_away(kubernetes: _Kubernetes) -> None:
    kubernetes.nodes = [_node(taints=[{"key": "busy", "effect": "PreferNoSchedule"}])]
    check_room(GOLDEN, Cluster("lab"), "kubeflow")


def test_missing_secrets_and_accounts_are_named(kubernetes: _Kubernetes) -> None:
    kubernetes.objects.clear()
    message = r"secret coralline-mlflow is not in namespace kubeflow \(and 1 more\)"
    with pytest.raises(UserError, match=message):
        check_room(GOLDEN, Cluster("lab"), "kubeflow", "runner")
    kubernetes.objects.add("secrets/coralline-mlflow")
    with pytest.raises(UserError, match="service account runner is not in namespace kubeflow"):
        check_room(GOLDEN, Cluster("lab"), "kubeflow", "runner")


def test_a_refusal_is_told(kubernetes: _Kubernetes) -> None:
    kubernetes.refused = "secrets"
    with pytest.raises(DeviceError, match=r"refuses GET .*/secrets/coralline-mlflow: 403"):
        check_room(GOLDEN, Cluster("lab"), "kubeflow")


def test_an_absent_cluster_is_told(kubernetes: _Kubernetes) -> None:
    cluster = Cluster("lab")
    kubernetes.server.shutdown()
    kubernetes.server.server_close()
    with pytest.raises(DeviceError, match="the cluster does not answer"):
        cluster.nodes()


def test_an_unknown_context_is_told(kubernetes: _Kubernetes) -> None:
    with pytest.raises(UserError, match=r"--kube-context farm: .*get-contexts"):
        Cluster("farm")
