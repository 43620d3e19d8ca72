"""Inventory files: what is read, and messages that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from coralline.errors import UserError
from hardware_lab.boards.android import Android
from hardware_lab.boards.edgetpu_sim import SimulatedEdgeTpu
from hardware_lab.boards.host import Host
from hardware_lab.boards.ssh import Ssh
from hardware_lab.cooldown import DEFAULTS, Cooldown
from hardware_lab.inventory import Demand, load_inventory, parse_needs
from hardware_lab.power import CommandSwitch, Uhubctl

HEAD = "schema: coralline.inventory/v1\n"


def test_the_shipped_inventory() -> None:
    inventory = load_inventory()
    assert list(inventory.boards) == ["host", "edgetpu-usb-sim", "edgetpu-pcie-sim"]
    for board in inventory.boards.values():
        assert board.check()


def test_options_reach_the_board(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        HEAD + "boards:\n"
        "  fast: {kind: host, threads_per_stage: 2, time_limit_s: 60}\n"
        "  sim: {kind: edgetpu-sim, device: edgetpu-pcie}\n"
    )
    boards = load_inventory(path).boards
    assert boards["fast"] == Host("fast", threads_per_stage=2, time_limit_s=60.0)
    assert boards["sim"] == SimulatedEdgeTpu("sim", device="edgetpu-pcie")


def test_what_stands_beside_a_board(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        HEAD + "boards:\n"
        "  pi:\n    kind: ssh\n    host: pi\n    reboot: sudo -n reboot\n"
        "    power: {kind: uhubctl, location: 1-1, port: 2}\n"
        "    cooldown: {celsius: 50, ambient_celsius: 22.5}\n"
        "  phone: {kind: android, binary: b, reboot: true, power: {kind: command, on: a, off: b}}\n"
        "  host: {kind: host}\n"
        "  sim: {kind: edgetpu-sim, device: edgetpu-usb}\n"
    )
    found = load_inventory(path)
    assert found.power == {"pi": Uhubctl("1-1", 2), "phone": CommandSwitch(on="a", off="b")}
    assert found.cooldown == {
        "pi": Cooldown(celsius=50.0, ambient_celsius=22.5),
        "phone": DEFAULTS["android"],
        "host": DEFAULTS["host"],
    }
    pi, phone = found.boards["pi"], found.boards["phone"]
    assert isinstance(pi, Ssh) and pi.reboot == "sudo -n reboot" and pi.may_restart
    assert isinstance(phone, Android) and phone.may_restart


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "is empty"),
        ("boards: [\n", 2, "is not YAML"),
        ("- a\n", 1, "must be a mapping"),
        ("boards: {}\n", 1, "`schema` must be"),
        ("schema: v9\nboards: {}\n", 1, "`schema` must be"),
        (HEAD, 1, "`boards` is missing"),
        (HEAD + "boards: {}\n", 2, "`boards` is empty"),
        (HEAD + "boards: {a: {kind: host}}\nlabs: 1\n", 3, "'labs' is not known"),
        (HEAD + "boards:\n  a: {kind: host}\n  a: {kind: host}\n", 4, "'a' is given twice"),
        (HEAD + "boards:\n  a: host\n", 3, "board 'a' must be a mapping"),
        (
            HEAD + "boards:\n  a: {}\n",
            3,
            "has no `kind`; choose android, coral-local, edgetpu-sim, host, ssh",
        ),
        (
            HEAD + "boards:\n  a:\n    kind: jetson\n",
            4,
            "kind 'jetson', which this version has no driver for; choose android, coral-local, "
            "edgetpu-sim, host, ssh",
        ),
        (HEAD + "boards:\n  a:\n    kind: host\n    cores: 2\n", 5, "option 'cores' is not known"),
        (
            HEAD + "boards:\n  a:\n    kind: host\n    threads_per_stage: two\n",
            5,
            "threads_per_stage is 'two'; it must be a whole number",
        ),
        (
            HEAD + "boards:\n  a:\n    kind: host\n    threads_per_stage: true\n",
            5,
            "must be a whole number",
        ),
        (HEAD + "boards:\n  a: {kind: host, threads_per_stage: 0}\n", 3, "at least 1"),
        (HEAD + "boards:\n  a: {kind: host, time_limit_s: -1}\n", 3, "above 0"),
        (HEAD + "boards:\n  a:\n    kind: host\n    tags: [usb3]\n", 5, "tags must be a mapping"),
        (
            HEAD + "boards:\n  a:\n    kind: host\n    tags:\n      usb3: 1\n      edgetpu: many\n",
            7,
            "tag edgetpu is 'many'; it must be a whole number",
        ),
        (HEAD + "boards:\n  a:\n    kind: host\n    tags:\n      tpu: 0\n", 6, "above 0"),
        (HEAD + "boards:\n  a:\n    kind: host\n    tags:\n      Edge TPU: 1\n", 6, "'Edge TPU'"),
        (HEAD + "boards:\n  a:\n    kind: host\n    power: off\n", 5, "power must be a mapping"),
        (HEAD + "boards:\n  a:\n    kind: host\n    power:\n      kind: hub\n", 6, "'hub'"),
        (
            HEAD + "boards:\n  a:\n    kind: host\n    power:\n      kind: ykush\n      port: 9\n",
            6,
            "board 'a': power: port is 9; it must be from 1 to 3",
        ),
        (
            HEAD + "boards:\n  a:\n    kind: host\n    power: {kind: ykush}\n",
            5,
            "board 'a': power lacks 'port'",
        ),
        (
            HEAD + "boards:\n  a:\n    kind: host\n    cooldown:\n      celsius: warm\n",
            6,
            "cooldown: celsius is 'warm'; it must be a number",
        ),
        (
            HEAD + "boards:\n  a:\n    kind: host\n    cooldown:\n      seconds: 3\n",
            6,
            "option 'seconds' is not known; choose celsius, max_s, pause_s, ambient_celsius",
        ),
        (
            HEAD + "boards:\n  a:\n    kind: host\n    cooldown: {max_s: 9999}\n",
            5,
            "must be from 0 to 3600",
        ),
        (
            HEAD + "boards:\n  a:\n    kind: edgetpu-sim\n    device: edgetpu-usb\n"
            "    cooldown: {}\n",
            6,
            "a board of kind 'edgetpu-sim' does not get warm",
        ),
        (
            HEAD + "boards:\n  a:\n    kind: android\n    binary: b\n    reboot: often\n",
            6,
            "reboot is 'often'; it must be true or false",
        ),
        (HEAD + "boards:\n  a: {kind: edgetpu-sim}\n", 3, "lacks 'device'"),
        (HEAD + "boards:\n  a: {kind: edgetpu-sim, device: tpu9}\n", 3, "'tpu9' is not known"),
        (HEAD + "boards:\n  a: {kind: edgetpu-sim, device: host-cpu}\n", 3, "not marked simulated"),
    ],
)
def test_messages_name_the_line(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_inventory(path)
    where = f"{path}:{line}: " if line else f"{path}: "
    assert str(caught.value).startswith(where)
    assert message in str(caught.value)


def test_no_such_file_or_board(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_inventory(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="choose host, edgetpu-usb-sim"):
        load_inventory().board("coral")


def test_who_meets_a_demand(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        HEAD + "boards:\n"
        "  one: {kind: host, tags: {edgetpu: 1, usb3: 1}}\n"
        "  four: {kind: host, tags: {edgetpu: 4}}\n"
        "  none: {kind: host}\n"
    )
    inventory = load_inventory(path)
    for board, needs, meeting in [
        (None, {"edgetpu": 1}, ["one", "four"]),
        (None, {"edgetpu": 2}, ["four"]),
        (None, {"edgetpu": 1, "usb3": 1}, ["one"]),
        ("none", {}, ["none"]),
        ("four", {"edgetpu": 4}, ["four"]),
    ]:
        demand = Demand(board, needs)
        assert inventory.meeting(demand) == meeting
        inventory.check(demand)
        assert Demand.of_text(demand.to_text()) == demand
    with pytest.raises(UserError, match=r"any with edgetpu 8; .*: edgetpu \(up to 4\), usb3"):
        inventory.check(Demand(None, {"edgetpu": 8}))
    with pytest.raises(UserError, match="no board is one with edgetpu 2"):
        inventory.check(Demand("one", {"edgetpu": 2}))
    with pytest.raises(UserError, match="board 'five' is not known; choose one"):
        inventory.check(Demand("five"))


def test_needs_as_they_are_typed() -> None:
    assert parse_needs(["usb3", "edgetpu=4"]) == {"usb3": 1, "edgetpu": 4}
    for text in ["", "=4", "edgetpu=", "edgetpu=0", "edgetpu=-1", "edgetpu=four", "Edge TPU"]:
        with pytest.raises(UserError, match="is not a tag"):
            parse_needs([text])
