from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from coralline.errors import UserError
from pipelines.acceptance import MAX_BYTES
from pipelines.package import check_package, find_image, parse_image
from pipelines.registry import NAMES

GOLDEN = Path(__file__).parents[1] / "golden"

Documents = list[dict[str, Any]]


@pytest.mark.parametrize("name", NAMES)
def test_our_own_pipelines_can_be_sent(name: str) -> None:
    (image,) = check_package(GOLDEN / f"{name}.yaml")
    assert image.version


def _container(documents: Documents) -> dict[str, Any]:
    container: dict[str, Any] = documents[0]["deploymentSpec"]["executors"]["exec-dispatch"][
        "container"
    ]
    return container


def _tasks(documents: Documents) -> dict[str, Any]:
    tasks: dict[str, Any] = documents[0]["root"]["dag"]["tasks"]
    return tasks


def _producer(documents: Documents) -> dict[str, Any]:
    inputs = _tasks(documents)["train-policy"]["inputs"]["artifacts"]
    producer: dict[str, Any] = inputs["graphs"]["taskOutputArtifact"]
    return producer


FAULTS: list[tuple[Callable[[Documents], object], str]] = [
    (lambda d: d[0]["components"].pop("comp-dispatch"), "is of comp-dispatch, which is not there"),
    (lambda d: d[0]["deploymentSpec"]["executors"].pop("exec-record"), "exec-record.*not there"),
    (lambda d: _producer(d).update(producerTask="nobody"), "reads graphs of nobody as graphs"),
    (lambda d: _producer(d).update(outputArtifactKey="grafs"), "reads grafs of join-shards"),
    (
        lambda d: _tasks(d)["record"].update(dependentTasks=["nobody"]),
        "task record waits for nobody",
    ),
    (
        lambda d: d[0]["root"]["inputDefinitions"]["parameters"].pop("seed"),
        "reads seed as .*seed, which root does not have",
    ),
    (lambda d: d[0].update(surprise=1), "the pipeline is not what KFP reads.*surprise"),
    (lambda d: d[0]["deploymentSpec"].update(surprise=1), "deploymentSpec is not what KFP reads"),
    (
        lambda d: d[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].update(
            {"exec-dispatch": {"nodeSelektor": {}}}
        ),
        "the platform of exec-dispatch is not what KFP reads.*nodeSelektor",
    ),
    (lambda d: _container(d).update(image="coralline"), "'coralline' has no tag"),
    (lambda d: _container(d).update(image="Coralline:1"), "'Coralline:1' cannot be parsed"),
    (
        lambda d: _container(d)["resources"].update(resourceMemoryLimit="2GiB"),
        "exec-dispatch: memory limit '2GiB' is not a quantity",
    ),
    (
        lambda d: _container(d)["resources"].update(resourceMemoryLimit="1Gi"),
        "the memory request is above the limit",
    ),
    (
        lambda d: _container(d)["resources"].update(resourceCpuRequest="0"),
        "cpu request '0' is not a quantity",
    ),
    (
        lambda d: _container(d)["resources"].update(accelerator={"resourceCount": "-1"}),
        "accelerator count '-1'",
    ),
    (lambda d: d[0].update(schemaVersion="2.2.0"), "schemaVersion is '2.2.0'.* takes 2.1.0 alone"),
    (lambda d: _tasks(d)["record"].pop("componentRef"), "task record has no component"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_fault_is_named(
    fault: Callable[[Documents], object], message: str, tmp_path: Path
) -> None:
    documents = list(yaml.safe_load_all((GOLDEN / "respect.yaml").read_text()))
    fault(documents)
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    with pytest.raises(UserError, match=message):
        check_package(file)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "a: 1", "just words"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml: "):
        check_package(tmp_path / "x.yaml")


def test_a_file_that_no_server_takes(tmp_path: Path) -> None:
    with (tmp_path / "x.yaml").open("w") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="larger than 32 MiB"):
        check_package(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("a:1", ("registry-1.docker.io", "library/a", "1")),
        ("docker.io/o/a:1", ("registry-1.docker.io", "o/a", "1")),
        ("ghcr.io/o/a__b:v1.2-x", ("ghcr.io", "o/a__b", "v1.2-x")),
        ("localhost:5000/a:1", ("localhost:5000", "a", "1")),
        ("reg:5000/o/a:1", ("reg:5000", "o/a", "1")),
        (f"a:1@sha256:{'0' * 64}", ("registry-1.docker.io", "library/a", f"sha256:{'0' * 64}")),
    ],
)
def test_images(reference: str, parts: tuple[str, str, str]) -> None:
    image = parse_image(reference)
    assert (image.registry, image.repository, image.version) == parts


@pytest.mark.parametrize("reference", ["", "a b:1", "a:", "a@sha256:12", "/a:1", "a:1:2", "ä:1"])
def test_what_is_no_image(reference: str) -> None:
    with pytest.raises(UserError, match="cannot be parsed"):
        parse_image(reference)


@pytest.fixture
def registry() -> Iterator[str]:
    """One image, to be seen with the token that the registry itself hands out."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if self.headers.get("Authorization") != "Bearer given":
                self.send_response(401)
                realm = f"http://{self.headers['Host']}/token"
                self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",scope="pull"')
            else:
                there = self.path == "/v2/o/coralline/manifests/1"
                assert "oci.image.index" in self.headers["Accept"]
                self.send_response(200 if there else 404)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"token": "given"}' if self.path == "/token?scope=pull" else b"")

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_registry_is_asked(registry: str) -> None:
    assert find_image(parse_image(f"{registry}/o/coralline:1")) is True
    assert find_image(parse_image(f"{registry}/o/coralline:2")) is False
    assert find_image(parse_image("127.0.0.1:1/o/coralline:2")) is None
