"""The policy as MLflow serves it: the file of `mlflow.pyfunc.save_model`, read where it is loaded.

A request is a list of `coralline.graph/v1` objects as text; the answer is as many
`coralline.plan/v1` objects as text.
"""

from __future__ import annotations

import json
from typing import Any

import mlflow


class PlanningPolicy(mlflow.pyfunc.PythonModel):
    """Plans graphs with the planner `policy` and the network that the model carries."""

    def load_context(self, context: Any) -> None:
        """Check the network, so that a damaged model fails when it is loaded."""
        from coralline.staging.policy import load_policy

        load_policy(context.artifacts["policy"])

    def predict(self, context: Any, model_input: list[str], params: Any = None) -> list[str]:
        """The plan of each graph.

        Args:
            model_input: Graphs.
            params: `stages`, `device`, `planner` (one that uses a policy), `seed`.

        Raises:
            UserError: A graph or a parameter is wrong.
        """
        from coralline.devices.model import load_device
        from coralline.errors import parse_json
        from coralline.graph.json_format import from_json
        from coralline.staging import Effort, StagingProblem, make_plan

        wanted = {**DEFAULTS, **(params or {})}
        device = load_device(wanted["device"])
        effort = Effort(seed=int(wanted["seed"]), policy=str(context.artifacts["policy"]))
        plans = []
        for i, text in enumerate(model_input):
            graph = from_json(parse_json(text, f"graph {i}"))
            problem = StagingProblem(graph, int(wanted["stages"]), device)
            plans.append(json.dumps(make_plan(problem, wanted["planner"], effort).to_json()))
        return plans


DEFAULTS = {"stages": 4, "device": "edgetpu-usb", "planner": "policy", "seed": 0}
"""Of the parameters of a request."""

mlflow.models.set_model(PlanningPolicy())
