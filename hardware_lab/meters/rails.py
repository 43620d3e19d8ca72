"""`rails`: the energy counters of a phone's power rails, recorded by Perfetto on the phone.

Phones with an on-device power monitor (Pixel 6 and later) count the energy of each rail since they
started, downstream of the battery, so that charging does not matter (perfetto.dev, "Battery
counters and power rails"). Perfetto reads the counters a few times a second; they integrate in
between. Started with --background-wait it prints its process, and writes the trace when that is
told to end (perfetto.dev, "Tracing in background"). The trace is fetched, and read here with the
message classes of the package perfetto.

Tested against an emulated phone whose `perfetto` writes such a trace, never on a phone.
"""

from __future__ import annotations

import re
import shlex
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from coralline.errors import DeviceError, UserError
from coralline.runtime.power import Trace
from hardware_lab.boards.adb import Adb
from hardware_lab.boards.clock import Relation
from hardware_lab.meters import Meter

COMMAND_S = 10.0
"""Longest that a short command on the phone may take, or Perfetto to end."""
LONGEST_S = 4 * 3600
"""Perfetto ends by itself after it, should the lab be gone."""
FOLDER = "/data/misc/perfetto-traces"
"""The one place where Perfetto may write and adb may read."""


@dataclass(frozen=True, kw_only=True)
class Rails(Meter):
    """The rails of a phone, together.

    Attributes:
        serial: As for board kind `android`.
        rails: Names of those that count, between commas; empty for all.
        poll_ms: How often Perfetto reads the counters.
        folder: Where it writes, on the phone.
    """

    at: str = "rail"
    serial: str = ""
    rails: str = ""
    poll_ms: int = 250
    folder: str = FOLDER

    kind = "rails"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at != "rail":
            raise UserError("these are rails; `at` must be rail")
        if not 100 <= self.poll_ms <= 10_000:
            raise UserError("poll_ms must be from 100 to 10000")
        if not re.fullmatch(r"/[A-Za-z0-9._/-]+", self.folder):
            raise UserError(f"folder {self.folder!r} is not a path of a phone")

    def open(self) -> PerfettoRails:
        """The rails."""
        return PerfettoRails(self)


class PerfettoRails:
    """A recording by the phone's Perfetto."""

    def __init__(self, meter: Rails) -> None:
        self._meter = meter
        self._where = f"meter {meter.name!r}"
        self._file = f"{meter.folder}/coralline-{meter.name}.pftrace"

    def reset(self) -> str:
        """Connect, and see that the phone has Perfetto."""
        self._phone = Adb(self._meter.serial, self._where)
        serial = self._phone.open()
        self._must("command -v perfetto", "has no perfetto; it came with Android 9")
        return f"power rails of {serial}"

    def start(self) -> None:
        """Begin to record; returns when the counters have been read once."""
        config = (
            "buffers { size_kb: 16384 fill_policy: RING_BUFFER } "
            'data_sources { config { name: "android.power" android_power_config { '
            f"battery_poll_ms: {self._meter.poll_ms} collect_power_rails: true }} }} }} "
            f"duration_ms: {LONGEST_S * 1000}"
        )
        said = self._must(
            f"rm -f {shlex.quote(self._file)}; echo {shlex.quote(config)} | "
            f"perfetto --txt -c - -o {shlex.quote(self._file)} --background-wait",
            "cannot record power rails",
            time_limit_s=2 * COMMAND_S,
        )
        found = re.findall(r"^\d+$", said.strip(), re.MULTILINE)
        if not found:
            raise DeviceError(f"{self._where}: perfetto does not tell its process ({said.strip()})")
        self._process = found[-1]
        self._before = self._phone.clock()
        time.sleep(2e-3 * self._meter.poll_ms)

    def stop(self) -> None:
        """Have the counters read once more, end Perfetto and fetch its trace."""
        time.sleep(2e-3 * self._meter.poll_ms)
        self._phone.open()  # adb's server may be another one by now
        self._relation = Relation(self._before, self._phone.clock())
        # It writes the file when it ends; a tenth of a second a try.
        tries = int(10 * COMMAND_S)
        self._must(
            f"kill -TERM {self._process}; i=0; while kill -0 {self._process} 2>/dev/null; do "
            f"i=$((i+1)); [ $i -lt {tries} ] || exit 1; sleep 0.1; done",
            "perfetto does not end",
            time_limit_s=2 * COMMAND_S,
        )
        self._data = self._phone.pull(self._file, time_limit_s=COMMAND_S)
        with suppress(DeviceError):
            self._phone.shell(f"rm -f {shlex.quote(self._file)}", time_limit_s=COMMAND_S)

    def data(self) -> Trace:
        """Energy of the rails together, and of each."""
        try:
            return energy_of(self._data, self._meter.rails, self._relation)
        except DeviceError as error:
            raise DeviceError(f"{self._where}: {error}") from None

    def _must(self, command: str, why: str, time_limit_s: float = COMMAND_S) -> str:
        ran = self._phone.shell(command, time_limit_s=time_limit_s)
        if ran.code != 0:
            said = f" ({ran.output.strip().splitlines()[-1]})" if ran.output.strip() else ""
            raise DeviceError(f"{self._where}: the phone {why}{said}")
        return ran.output


def energy_of(data: bytes, rails: str, relation: Relation) -> Trace:
    """The rails of a Perfetto trace, on the clock of the lab's host.

    Args:
        rails: As `Rails` has it.
        relation: Of the phone's clock to the lab's.

    Raises:
        DeviceError: The bytes are no trace, or have no such rails.
    """
    wanted = {name.strip() for name in rails.split(",") if name.strip()}
    found = read_rails(data)
    if not found:
        raise DeviceError("the phone reports no power rails; few do (Pixel 6 and later)")
    if wanted - found.keys():
        raise DeviceError(
            f"the phone has no rail {sorted(wanted - found.keys())[0]!r}; it has "
            f"{', '.join(sorted(found))}"
        )
    chosen = {name: found[name] for name in sorted(wanted or found)}
    times = np.unique(np.concatenate([t_s for t_s, _ in chosen.values()]))
    first = max(t_s[0] for t_s, _ in chosen.values())
    last = min(t_s[-1] for t_s, _ in chosen.values())
    times = times[(times >= first) & (times <= last)]
    each = {name: np.interp(times, t_s, joules) for name, (t_s, joules) in chosen.items()}
    return Trace(
        relation.lab_s(times),
        energy_j=np.sum(list(each.values()), axis=0),
        channels={f"{name}_j": joules for name, joules in each.items()},
        bound_s=relation.bound_s,
    )


def read_rails(data: bytes) -> dict[str, tuple[Any, Any]]:
    """Energy counters in a Perfetto trace, by the name of the rail.

    Returns:
        For each, seconds since the phone started, float64 (N,), growing, and joules, float64 (N,).

    Raises:
        DeviceError: The bytes are no trace.
    """
    from google.protobuf.message import DecodeError
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2

    trace = perfetto_trace_pb2.Trace()
    try:
        trace.ParseFromString(data)
    except DecodeError as error:
        raise DeviceError(f"the phone's perfetto wrote no trace ({error})") from None
    names: dict[int, str] = {}
    counts: dict[int, dict[int, int]] = defaultdict(dict)
    for packet in trace.packet:
        for rail in packet.power_rails.rail_descriptor:
            names[rail.index] = f"{rail.subsys_name}.{rail.rail_name}".strip(".")
        for read in packet.power_rails.energy_data:
            # One reading may be told twice.
            counts[read.index][read.timestamp_ms] = read.energy
    found = {}
    for index, told in counts.items():
        if len(told) > 1:
            at_ms = sorted(told)
            found[names.get(index, str(index))] = (
                np.array(at_ms) / 1e3,
                np.array([told[at] for at in at_ms]) / 1e6,
            )
    return found
