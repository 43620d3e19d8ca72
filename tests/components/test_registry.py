"""The registered policy, in a real SQLite store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_policy, chain

from components import registry, tracking
from components.promotion import judge_policy
from components.registry import find_champion, register
from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph.json_format import to_json
from coralline.graph.synthetic import generate
from coralline.staging import Effort, Plan, StagingProblem, make_plan
from coralline.staging.policy import load_policy, save_policy
from training.evaluate import random_orders
from training.gate import Verdict


class Store:
    """A store with an experiment, to register policies in."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder = uri, folder
        self.client = tracking._client(uri)
        self.experiment = self.client.create_experiment("e", (folder / "artifacts").as_uri())

    def register(self, seed: int, promoted: bool, compared_with: int | None):
        run = self.client.create_run(self.experiment).info.run_id
        verdict = Verdict(promoted, "because", compared_with, {"gate_gap": 0.1}, 64)
        policy = a_policy(self.folder / f"{seed}.npz", seed)
        return register(self.client, self.uri, run, policy, verdict)

    @property
    def champion(self) -> int | None:
        found = find_champion(self.client)
        return None if found is None else found.version


@pytest.fixture
def store(sqlite: str, tmp_path: Path) -> Store:
    return Store(sqlite, tmp_path)


def test_the_alias_moves_by_a_verdict_only(store: Store) -> None:
    assert store.champion is None
    assert store.register(0, False, None).version == 1
    assert store.champion is None
    assert store.register(1, True, None).version == 2
    assert store.champion == 2
    assert store.register(2, False, 2).version == 3
    assert store.champion == 2
    assert store.register(3, True, 2).version == 4
    assert store.champion == 4
    # What was kept back once may be better than a later champion.
    assert store.register(0, True, 4).version == 1
    assert store.champion == 1


def test_nobody_is_promoted_over_a_champion_that_it_was_not_compared_with(store: Store) -> None:
    store.register(0, True, None)
    store.register(1, True, 1)
    late = store.register(2, True, 1)
    assert store.champion == 2
    assert not late.verdict.promoted
    assert "the champion became version 2 in the meantime" in late.verdict.reason
    tags = store.client.get_model_version(registry.POLICY_MODEL, "3").tags
    assert tags["verdict"] == "kept back"
    assert tags["reason"] == late.verdict.reason


def test_the_champion_plans(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    store.register(0, True, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    model = mlflow.pyfunc.load_model(f"models:/{registry.POLICY_MODEL}@{registry.CHAMPION}")
    assert {p.name for p in model.metadata.get_params_schema().params} == {
        *("stages", "device", "planner", "seed")
    }
    graph = chain("net", 9)
    answer = model.predict([json.dumps(to_json(graph))], params={"stages": 3})
    plan = Plan.from_json(json.loads(answer[0]))
    plan.check_graph(graph)
    assert (plan.n_stages, plan.planner, plan.device) == (3, "policy", "edgetpu-usb")
    example = model.input_example
    [planned] = model.predict(example)
    assert json.loads(planned)["n_stages"] == 4
    with pytest.raises(UserError, match="graph 0: is not JSON"):
        model.predict(["nonsense"])


def test_a_policy_is_judged_against_the_champion_in_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    device = load_device("edgetpu-usb")
    graphs = generate("respect", 20, 14, 5)
    labels = [make_plan(StagingProblem(g, 3, device), "exact", Effort(10)) for g in graphs]
    trained, chance = tmp_path / "trained.npz", tmp_path / "chance.npz"
    save_policy(trained, load_policy())
    random = random_orders()
    save_policy(chance, replace(random, metadata={"hidden": 1, "layers": 0}))

    def judged(policy: Path) -> Verdict:
        verdict = judge_policy(policy, graphs, labels, tmp_path / "verdict.json")
        assert Verdict.from_json(json.loads((tmp_path / "verdict.json").read_text())) == verdict
        run = store.client.create_run(store.experiment).info.run_id
        return register(store.client, store.uri, run, policy, verdict).verdict

    assert judged(trained).word == "promoted"
    assert store.champion == 1
    again = judged(trained)
    assert (again.word, again.reason) == ("unchanged", "it is the champion, version 1")
    tags = store.client.get_model_version(registry.POLICY_MODEL, "1").tags
    assert tags["verdict"] == "promoted"
    worse = judged(chance)
    assert (worse.word, worse.compared_with) == ("kept back", 1)
    assert worse.reason.startswith("its gap is worse")
    assert store.champion == 1
