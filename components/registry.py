"""The trained policy as a registered model: the one room that speaks with MLflow's registry.

`coralline-policy` has one version for each content of a policy file, a pyfunc model with signature
and input example. The alias `champion` names the one to use; it moves only by a verdict of
`training.gate`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

from coralline.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from training.gate import Verdict

POLICY_MODEL = "coralline-policy"
CHAMPION = "champion"

_FILES = "*.npz"


@dataclass(frozen=True)
class Champion:
    """The policy that the alias names.

    Attributes:
        version: Of the registered model.
        digest: SHA-256 of its file.
    """

    version: int
    digest: str


@dataclass(frozen=True)
class Registered:
    """A policy in the registry.

    Attributes:
        version: Of the registered model.
        verdict: As it was carried out: nobody is promoted over a champion that it was not
            compared with.
    """

    version: int
    verdict: Verdict


def find_champion(client: MlflowClient) -> Champion | None:
    """The present champion, or None."""
    found = _champion(client)
    # A person may have given the alias to a version of another origin.
    return None if found is None else Champion(int(found.version), found.tags.get("digest", ""))


def fetch(client: MlflowClient, uri: str, version: int, folder: Path) -> Path:
    """The policy file of a version, downloaded to `folder`.

    Raises:
        UserError: The version holds no policy.
    """
    import mlflow

    source = client.get_model_version_download_uri(POLICY_MODEL, str(version))
    fetched = Path(
        mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=uri)
    )
    files = sorted(fetched.rglob(_FILES))
    if not files:
        raise UserError(
            f"version {version} of {POLICY_MODEL} holds no policy; take the alias away with "
            f"MlflowClient().delete_registered_model_alias('{POLICY_MODEL}', '{CHAMPION}')"
        )
    return files[0]


def register(
    client: MlflowClient, uri: str, run_id: str, policy: Path, verdict: Verdict
) -> Registered:
    """Make the policy a version, once a content, and carry out the verdict.

    Args:
        run_id: Of the run that the model is logged to.
    """
    digest = file_digest(policy)
    if not client.search_registered_models(f"name = '{POLICY_MODEL}'"):
        client.create_registered_model(
            POLICY_MODEL, description="Scheduling policy of `coralline schedule --planner policy`"
        )
    known = client.search_model_versions(f"name = '{POLICY_MODEL}'")
    same = [one for one in known if one.tags.get("digest") == digest]
    created = same[0] if same else _new_version(client, uri, run_id, policy, digest)
    number = int(created.version)
    verdict = _carry_out(client, number, verdict)
    if verdict.graphs:
        for key, value in (
            ("verdict", verdict.word),
            ("reason", verdict.reason),
            ("gap", repr(verdict.metrics["gate_gap"])),
        ):
            client.set_model_version_tag(POLICY_MODEL, created.version, key, value)
    return Registered(number, verdict)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    return sha256(path.read_bytes()).hexdigest()


def _carry_out(client: MlflowClient, version: int, verdict: Verdict) -> Verdict:
    present = find_champion(client)
    if not verdict.promoted or (present is not None and present.version == version):
        return verdict
    if (None if present is None else present.version) != verdict.compared_with:
        reason = (
            f"the champion became {'none' if present is None else f'version {present.version}'} "
            f"in the meantime; run the pipeline again ({verdict.reason})"
        )
        return replace(verdict, promoted=False, reason=reason)
    client.set_registered_model_alias(POLICY_MODEL, CHAMPION, str(version))
    return verdict


def _champion(client: MlflowClient) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(POLICY_MODEL, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _new_version(
    client: MlflowClient, uri: str, run_id: str, policy: Path, digest: str
) -> ModelVersion:
    import mlflow

    from components import policy_model

    with _writing_to(uri), mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="policy",
            python_model=policy_model.__file__,
            artifacts={"policy": str(policy)},
            input_example=(_example(), policy_model.DEFAULTS),
            pip_requirements=[f"{name}=={installed(name)}" for name in ("coralline", "mlflow")],
        )
        # Here, for it asks the process's own store for the logged model.
        created = client.create_model_version(
            POLICY_MODEL,
            source=logged.model_uri,
            run_id=run_id,
            tags={"digest": digest},
            model_id=logged.model_id,
        )
    client.update_run(run_id, status="RUNNING")  # which the end of the block has changed
    return created


def _example() -> list[str]:
    from coralline.graph.json_format import to_json
    from coralline.graph.synthetic import generate

    return [json.dumps(to_json(graph)) for graph in generate("branch", 1, 8, 0)]


@contextmanager
def _writing_to(uri: str) -> Iterator[None]:
    """Log models to this store; MLflow has no other way than to say so for the whole process."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # sets the variable too
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
