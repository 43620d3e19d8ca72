"""A stand-in for benchmark_model and benchmark_litert_model on an emulated phone.

It takes their flags, really runs the model with LiteRT on this machine's CPU, and prints what
they print (google-ai-edge/LiteRT, tflite/tools/benchmark/benchmark_model.cc). As on a phone
without the processor asked for, every processor but the CPU is silently replaced by the CPU.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from coralline.runtime.interpreter import Model

FAULTS = "CORALLINE_TEST_FAULT"


def main() -> None:
    flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    fault = os.environ.get(FAULTS, "")
    if fault == "hang":
        time.sleep(600)
    if fault == "crash":
        print("ERROR: Failed to apply GPU delegate.")
        sys.exit(1)
    if fault == "garbage":
        print("INFO: nothing of use")
        return
    if "use_npu" in flags:
        run_npu(flags)
    else:
        run_cpu(flags, fault)


def run_npu(flags: dict[str, str]) -> None:
    """Asked for the NPU, with the CPU allowed as it is by default, LiteRT silently falls back."""
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator

    model = CompiledModel.from_file(
        flags["graph"], hardware_accel=HardwareAccelerator.NPU | HardwareAccelerator.CPU
    )
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    time_runs(flags, lambda: model.run_by_index(0, inputs, outputs))


def run_cpu(flags: dict[str, str], fault: str) -> None:
    graph = flags["graph"]
    model = Model(Path(graph), int(flags["num_threads"]))
    found = model.partitions()
    kind = "GPU" if "use_gpu" in flags else "NNAPI" if "use_nnapi" in flags else "XNNPACK"
    print(f"INFO: Loaded model {graph}")
    if found["partitions"]:
        print(
            f"VERBOSE: Replacing {found['delegated']} out of {found['operators']} node(s) with "
            f"delegate (TfLiteXNNPackDelegate) node, yielding {found['partitions']} partitions "
            "for subgraph 0."
        )
    if kind == "XNNPACK":
        print(
            "INFO: Explicitly applied XNNPACK delegate, and the model graph will be completely "
            "executed by the delegate."
        )
    else:
        print(
            f"INFO: Though {kind} delegate is explicitly applied, the model graph will not be "
            "executed by the delegate."
        )
    inputs = model.random_inputs(np.random.default_rng())
    if files := flags.get("input_layer_value_files"):
        data = [Path(pair.split(":")[1]).read_bytes() for pair in files.split(",")]
        inputs = [
            np.frombuffer(block, array.dtype).reshape(array.shape)
            for block, array in zip(data, inputs, strict=True)
        ]
    model.feed(inputs)
    time_runs(flags, model.invoke)
    if "output_filepath" in flags:
        outputs = model.empty_outputs()
        model.fetch(outputs)
        with open(flags["output_filepath"], "wb") as out:
            for value in outputs:
                if fault == "wrong output":
                    value = np.flip(value.view(np.uint8) ^ 0x7F)
                out.write(value.tobytes())
    if flags.get("enable_op_profiling") == "true":
        # Made up: LiteRT for Python tells no times of operators.
        rows = [
            f"{kind}, 0.010, 0.009, 50.000%, 50.000%, 0.000, {count}, [of {kind}]:0"
            for kind, count in found["plain"].items()
        ]
        rows.append("Conv (NHWC, QC8), 0.010, 0.009, 50.000%, 50.000%, 0.000, 1, Delegate/Conv:0")
        Path(flags["op_profiling_output_file"]).write_text(
            "\n".join(
                [
                    "Profiling Info for Benchmark Initialization:",
                    f"{'=' * 30} Run Order {'=' * 30}",
                    "node type, first, avg_ms, %, cdf%, mem KB, times called, name",
                    "AllocateTensors, 1.3, 1.3, 100.000%, 100.000%, 0.000, 1, AllocateTensors/0",
                    "",
                    "Operator-wise Profiling Info for Regular Benchmark Runs:",
                    f"{'=' * 30} Run Order {'=' * 30}",
                    "node type, first, avg_ms, %, cdf%, mem KB, times called, name",
                    *rows,
                    "",
                    f"{'=' * 30} Top by Computation Time {'=' * 30}",
                    "node type, first, avg_ms, %, cdf%, mem KB, times called, name",
                    *rows,
                ]
            )
        )


def time_runs(flags: dict[str, str], run) -> None:
    for count in (int(flags.get("warmup_runs", 1)), int(flags["num_runs"])):
        print(
            f"INFO: Running benchmark for at least {count} iterations and at least 0 seconds but "
            f"terminate if exceeding {flags.get('max_secs', '150')} seconds.",
            flush=True,
        )
        times = []
        for _ in range(count):
            started = time.perf_counter()
            run()
            times.append(round(1e6 * (time.perf_counter() - started)))
            time.sleep(max(float(flags.get("run_delay", -1)), 0))
        t = np.array(times)
        if len(set(times)) == 1:
            said = f"count={count} curr={t[-1]}" + ("(all same)" if count > 1 else "")
        else:
            p5, p50, p95 = (int(v) for v in np.percentile(t, [5, 50, 95], method="lower"))
            said = (
                f"count={count} first={t[0]} curr={t[-1]} min={t.min()} max={t.max()} "
                f"avg={t.mean():g} std={t.std():.0f} p5={p5} median={p50} p95={p95}"
            )
        print(f"INFO: {said}\n", flush=True)


if __name__ == "__main__":
    main()
