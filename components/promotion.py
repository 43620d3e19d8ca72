"""What the judging component does, as a plain function."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from coralline.files import write_text
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging import Plan
from coralline.staging.policy import load_policy
from training.gate import Verdict, judge


def judge_policy(
    policy: Path, graphs: Sequence[ComputeGraph], labels: Sequence[Plan], out: Path
) -> Verdict:
    """Hold a policy against the champion in MLflow by `training.gate`; write the verdict to `out`.

    Args:
        graphs, labels: That the policy was not trained on.

    Raises:
        DeviceError: MLflow does not answer.
    """
    from components.registry import fetch, file_digest, find_champion
    from components.tracking import connected, tracking_uri

    uri = tracking_uri()
    with connected(uri) as client, TemporaryDirectory() as folder:
        champion = find_champion(client)
        if champion is not None and champion.digest == file_digest(policy):
            version = champion.version
            verdict = Verdict(False, f"it is the champion, version {version}", version, {}, 0)
        elif champion is None:
            verdict = judge(load_policy(policy), None, None, graphs, labels)
        else:
            present = load_policy(fetch(client, uri, champion.version, Path(folder)))
            verdict = judge(load_policy(policy), present, champion.version, graphs, labels)
    write_text(out, json.dumps(verdict.to_json(), allow_nan=False) + "\n")
    return verdict
