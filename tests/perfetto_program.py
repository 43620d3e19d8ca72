"""A stand-in for Perfetto on an emulated phone: it records power rails until it is told to end.

The rails' energy since the phone started is their power times that time; the power is that of
POWERS, watts by rail, in the environment.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

POWERS = "CORALLINE_TEST_RAILS"


def main() -> None:
    options = sys.argv[1:]
    out = options[options.index("-o") + 1]
    if "--background-wait" in options:
        assert options[options.index("-c") + 1] == "-" and "--txt" in options
        config = sys.stdin.read()
        assert re.search(r'name: "android.power".*collect_power_rails: true', config)
        (poll_ms,) = re.findall(r"battery_poll_ms: (\d+)", config)
        child = subprocess.Popen(
            [sys.executable, __file__, "-o", out, poll_ms],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert child.stdout
        child.stdout.read(1)  # its data source has started
        print(child.pid)
    else:
        record(Path(out), int(options[-1]))


def record(out: Path, poll_ms: int) -> None:
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2

    over = Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    powers = json.loads(os.environ.get(POWERS, "{}"))
    trace = perfetto_trace_pb2.Trace()
    packet = trace.packet.add()
    for index, name in enumerate(powers):
        subsystem, _, rail = name.partition(".")
        packet.power_rails.rail_descriptor.add(
            index=index, rail_name=rail, subsys_name=subsystem, sampling_rate=1000
        )
    first = True
    while not over.wait(0 if first else poll_ms / 1e3):
        packet = trace.packet.add(timestamp=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        up_ms = int(1e3 * float(Path("/proc/uptime").read_text().split()[0]))
        for index, watts in enumerate(powers.values()):
            packet.power_rails.energy_data.add(
                index=index, timestamp_ms=up_ms, energy=round(1e3 * up_ms * watts)
            )
        if first:
            os.write(1, b".")
            first = False
    out.write_bytes(trace.SerializeToString())


if __name__ == "__main__":
    main()
