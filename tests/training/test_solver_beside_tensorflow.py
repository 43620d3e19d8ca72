from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GRAPH = Path(__file__).parents[1] / "data" / "respect_graphs" / "resnet50.json"

SOLVE = f"""
from pathlib import Path
from coralline.devices.model import load_device
from coralline.graph import read_graph
from coralline.staging import StagingProblem, make_plan
graph = read_graph(Path({str(GRAPH)!r}))
problem = StagingProblem(graph, 4, load_device("edgetpu-usb"), "peak-memory")
print(round(make_plan(problem, "exact-cpsat").value / 2**20, 4))
"""


def test_cpsat_works_after_tensorflow_was_loaded() -> None:
    # In a process of its own, since what goes wrong is a segmentation fault.
    code = "import tensorflow\n" + SOLVE
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout.strip()) == (0, "6.0477"), result.stderr
