"""The planner `policy` and its decoder; training is tested in tests/training."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph import synthetic
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging import OBJECTIVES, Effort, StagingProblem, make_plan
from coralline.staging.decoder import beam, decode, policy_input, project
from coralline.staging.policy import Policy, load_policy, save_policy, weight_shapes

DEVICE = load_device("edgetpu-usb")


def some_policy(seed: int = 0, hidden: int = 16, layers: int = 2) -> Policy:
    rng = np.random.default_rng(seed)
    weights = {
        name: np.array(rng.standard_normal(shape) / np.sqrt(max(shape, default=1)), np.float32)
        for name, shape in weight_shapes(hidden, layers).items()
    }
    return Policy(weights, {"hidden": hidden, "layers": layers})


@pytest.fixture
def policy_file(tmp_path: Path) -> str:
    path = tmp_path / "policy.npz"
    save_policy(path, some_policy())
    return str(path)


@settings(max_examples=40)
@given(
    st.sampled_from(synthetic.family_names()),
    st.integers(2, 60),
    st.integers(0, 10**6),
    st.integers(1, 8),
)
def test_every_order_is_topological(family: str, nodes: int, seed: int, samples: int) -> None:
    graph = synthetic.generate(family, 1, nodes, seed)[0]
    orders = some_policy(seed).rollouts(StagingProblem(graph, 2, DEVICE), samples, seed).order
    position = np.argsort(orders, axis=1)
    assert (np.sort(orders, axis=1) == np.arange(nodes)).all()
    u, v = graph.edges.T
    assert (position[:, u] < position[:, v]).all()


def test_node_numbers_mean_nothing() -> None:
    graph = synthetic.generate("respect", 1, 25, 4)[0]
    rng = np.random.default_rng(0)
    number = rng.permutation(25)
    shuffled = ComputeGraph.build(
        graph.name,
        param_bytes=graph.param_bytes[np.argsort(number)],
        macs=graph.macs[np.argsort(number)],
        tensor_bytes=graph.tensor_bytes,
        tensor_producer=[MODEL_INPUT, *number[graph.tensor_producer[1:]]],
        consumers=[
            number[graph.consumers[a:b]].tolist()
            for a, b in zip(graph.consumer_start[:-1], graph.consumer_start[1:], strict=True)
        ],
    )
    policy = some_policy()
    one = policy.rollouts(StagingProblem(graph, 4, DEVICE), 1).order[0]
    other = policy.rollouts(StagingProblem(shuffled, 4, DEVICE), 1).order[0]
    assert number[one].tolist() == other.tolist()


def test_the_recorded_probabilities_are_those_of_the_samples() -> None:
    """Frequencies of whole orders of a small graph match their probabilities."""
    graph = synthetic.generate("skip", 3, 6, 1)[2]
    problem = StagingProblem(graph, 2, DEVICE)
    rolled = some_policy().rollouts(problem, 20_000, seed=3, greedy=False)
    orders, first, count = np.unique(rolled.order, axis=0, return_index=True, return_counts=True)
    probability = np.exp(rolled.log_probability[first])
    assert len(orders) > 3
    # One order may come from several ways to close the stages.
    assert (count / 20_000 > probability - 0.015).all()


def test_a_wide_beam_finds_every_plan_and_ranks_them() -> None:
    """Of a small graph: as many as there are ways to put its nodes into two stages."""
    graph = synthetic.generate("skip", 3, 6, 1)[2]
    inputs, policy = policy_input(StagingProblem(graph, 2, DEVICE)), some_policy()
    found = beam(inputs, project(policy.weights, inputs), 200)
    assert (np.diff(found.log_probability) <= 0).all()
    down_sets = {
        bits
        for bits in range(1, 2**6)
        if all(bits >> u & 1 for v in range(6) if bits >> v & 1 for u in graph.predecessors[v])
    }
    # The full set stands for the plans that never close a stage.
    assert len(found.order) == len(down_sets)
    best = beam(inputs, project(policy.weights, inputs), 1)
    greedy = policy.rollouts(StagingProblem(graph, 2, DEVICE), 1)
    assert best.order.tolist() == greedy.order.tolist()
    assert best.log_probability == pytest.approx(greedy.log_probability)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_plans_are_feasible_for_every_objective(objective: str, policy_file: str) -> None:
    graph = synthetic.generate("cell", 1, 40, 0)[0]
    problem = StagingProblem(graph, 4, DEVICE, objective)  # type: ignore[arg-type]
    plan = make_plan(problem, "policy", Effort(policy=policy_file))
    assert plan.lower_bound <= plan.value
    again = make_plan(problem, "policy", Effort(policy=policy_file))
    assert plan.stage == again.stage


@pytest.mark.parametrize("planner", ["policy-greedy", "policy-sample", "policy-beam"])
def test_every_way_to_decode_gives_a_plan(planner: str, policy_file: str) -> None:
    graph = synthetic.generate("window", 1, 40, 0)[0]
    effort = Effort(policy=policy_file)
    plan = make_plan(StagingProblem(graph, 4, DEVICE), planner, effort)
    greedy = make_plan(StagingProblem(graph, 4, DEVICE), "policy-greedy", effort)
    assert plan.lower_bound <= plan.value <= greedy.value


def test_a_memory_limit_steers_the_decoder(policy_file: str) -> None:
    graph = synthetic.generate("branch", 1, 60, 0)[0]
    least = make_plan(StagingProblem(graph, 4, DEVICE, "peak-memory"), "exact").value
    problem = StagingProblem(graph, 4, DEVICE, memory_limit_bytes=int(1.1 * least))
    plan = make_plan(problem, "policy", Effort(policy=policy_file))
    assert max(plan.stages["param_bytes"]) <= 1.1 * least


def test_children_together(policy_file: str) -> None:
    graph = synthetic.generate("branch", 1, 40, 0)[0]
    problem = StagingProblem(graph, 2, DEVICE, children_together=True)
    assert make_plan(problem, "policy", Effort(policy=policy_file)).value > 0


def test_odd_graphs(policy_file: str) -> None:
    effort = Effort(policy=policy_file)
    one = ComputeGraph.build(
        "one", param_bytes=[5], tensor_bytes=[3], tensor_producer=[0], consumers=[[]]
    )
    assert make_plan(StagingProblem(one, 1, DEVICE), "policy", effort).stage == (0,)
    # Nothing costs anything, and the two halves do not touch.
    free = ComputeGraph.build(
        "free",
        param_bytes=[0] * 6,
        tensor_bytes=[0] * 6,
        tensor_producer=range(6),
        consumers=[[1], [2], [], [4], [5], []],
    )
    for objective in OBJECTIVES:
        problem = StagingProblem(free, 3, DEVICE, objective)
        assert len(set(make_plan(problem, "policy", effort).stage)) == 3


def test_the_time_limit_is_kept_after_the_first_order(policy_file: str) -> None:
    graph = synthetic.generate("skip", 1, 2000, 0)[0]
    effort = Effort(time_limit_s=0.0, policy=policy_file)
    plan = make_plan(StagingProblem(graph, 4, DEVICE), "policy", effort)
    full = make_plan(StagingProblem(graph, 4, DEVICE), "policy", Effort(policy=policy_file))
    assert plan.solve_seconds < full.solve_seconds
    assert full.value <= plan.value


def test_greedy_takes_the_likeliest_node() -> None:
    problem = StagingProblem(synthetic.generate("respect", 1, 30, 0)[0], 4, DEVICE)
    inputs, policy = policy_input(problem), some_policy()
    uniform = np.random.default_rng(0).random((2000, inputs.n_steps))
    rolled = decode(inputs, project(policy.weights, inputs), uniform, n_greedy=1, record=True)
    # The first step is the same for all: the greedy choice is the commonest, up to chance.
    counts = np.bincount(rolled.order[1:, 0], minlength=30)
    assert counts[rolled.order[0, 0]] > 0.9 * counts.max()
    assert rolled.record is not None
    first = rolled.record.node[rolled.record.step == 0]
    assert sorted(first) == [v for v, p in enumerate(problem.graph.predecessors) if not p]


def test_damaged_policies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.npz: no such file; train one"):
        load_policy(tmp_path / "none.npz")
    path = tmp_path / "policy.npz"
    save_policy(path, some_policy())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a policy", whole[:-300] + bytes(300)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"policy\.npz: is damaged"):
            load_policy(path)
    broken = some_policy()
    save_policy(
        path, Policy({**broken.weights, "key": np.zeros((3, 3), np.float32)}, broken.metadata)
    )
    with pytest.raises(UserError, match="the weights do not fit"):
        load_policy(path)
    save_policy(path, Policy(broken.weights, {}))
    with pytest.raises(UserError, match="does not say how large"):
        load_policy(path)
    nan = np.full(weight_shapes(16, 2)["key"], np.nan, np.float32)
    save_policy(path, Policy({**broken.weights, "key": nan}, broken.metadata))
    with pytest.raises(UserError, match="the weights do not fit"):
        load_policy(path)
    problem = StagingProblem(synthetic.generate("respect", 1, 10, 0)[0], 2, DEVICE)
    with pytest.raises(UserError, match="the weights do not fit"):
        make_plan(problem, "policy", Effort(policy=str(path)))


def test_the_policy_in_the_package_beats_chance_and_the_graphs_own_order() -> None:
    shipped = load_policy()
    assert shipped.metadata["metrics"]["greedy_gap"] < shipped.metadata["metrics"]["untrained_gap"]
    values: dict[str, list[float]] = {"policy": [], "topo-dp": []}
    for family in synthetic.family_names():
        for graph in synthetic.generate(family, 10, 30, seed=987):
            problem = StagingProblem(graph, 4, DEVICE)
            for planner, found in values.items():
                found.append(make_plan(problem, planner).value)
    ratio = np.array(values["topo-dp"]) / np.array(values["policy"])
    assert ratio.mean() > 1.1
    assert (ratio > 0.99).mean() > 0.8
