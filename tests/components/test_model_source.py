from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_server import serving

from components.model_source import get_model, hand_over
from coralline.errors import DeviceError, UserError
from hardware_lab.store import Store

MODEL = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    with serving(Store(tmp_path / "lab")) as address:
        yield address


def test_a_pod_gets_the_model_that_was_handed_over(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "my@net.tflite"
    shutil.copy(MODEL, mine)
    zoo, reference = hand_over(["mobilenet_v2", str(mine)], service)
    assert zoo == "mobilenet_v2"
    assert re.fullmatch(r"my-net\.tflite@sha256:[0-9a-f]{64}", reference)
    assert hand_over([reference], "") == [reference]
    mine.unlink()
    [kept] = (tmp_path / "lab" / "artifacts").rglob(reference.split(":")[1])
    os.utime(kept, (0, 0))
    monkeypatch.setenv("CORALLINE_LAB", service)
    get_model(reference, tmp_path / "pod")
    assert (tmp_path / "pod" / "my-net.tflite").read_bytes() == MODEL.read_bytes()
    assert kept.stat().st_mtime > 0  # what is in use is not pruned


def test_a_model_that_the_lab_has_not_is_named(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORALLINE_LAB", service)
    with pytest.raises(DeviceError, match=f"sha256:{'0' * 64} is not in .*submit the file again"):
        get_model(f"net.tflite@sha256:{'0' * 64}", tmp_path / "pod")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "'resnet' is not in the zoo"),
        ("nowhere.tflite", r"nowhere\.tflite: no such file"),
        (str(MODEL), "no pod can read it; set CORALLINE_LAB"),
        ("../net.tflite@sha256:" + "0" * 64, "not in the zoo"),
    ],
)
def test_what_cannot_be_handed_over_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hand_over([name], "/var/lib/lab")


def test_what_is_no_model_is_not_sent(service: str, tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(MODEL.read_bytes()[:500])
    with pytest.raises(UserError, match=r"bad\.tflite"):
        hand_over([str(tmp_path / "bad.tflite")], service)
    assert not list(Store(tmp_path / "lab").artifacts.stored())
