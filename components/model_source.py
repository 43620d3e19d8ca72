"""Where a pipeline gets its models from: the zoo, a file, or the artifacts of the lab."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from coralline.errors import DeviceError, UserError
from coralline.files import make_folder

_REFERENCE = re.compile(r"(?P<file>[^/@]+\.tflite)@(?P<ref>sha256:[0-9a-f]{64})")
"""A .tflite of the lab: its name for people, and its artifact."""


def get_model(name: str, folder: Path) -> None:
    """Write a model into a folder of its own.

    Args:
        name: Of the zoo, path of a .tflite, or FILE.tflite@sha256:... of the lab.

    Raises:
        UserError: There is no such model.
        DeviceError: The lab does not answer, or has the model no more.
    """
    make_folder(folder)
    reference = _REFERENCE.fullmatch(name)
    if reference is not None:
        _download(reference["ref"], folder / reference["file"])
    elif name.endswith(".tflite"):
        shutil.copy(_file(name), folder / Path(name).name)
    else:
        from training.zoo import build_model

        build_model(name, folder)


def hand_over(names: Sequence[str], where: str) -> list[str]:
    """Put the models that are files of this machine where pods can read them.

    Args:
        names: As `get_model` takes them.
        where: Address of the lab's service; empty for none.

    Returns:
        The names, with a reference in the place of each path.

    Raises:
        UserError: A name is not known, a file is missing, or there is no service to hand it to.
        DeviceError: The service does not answer.
    """
    from training.zoo import zoo_names

    given = []
    for name in names:
        if name.endswith(".tflite"):
            name = _upload(_file(name), where)
        elif not _REFERENCE.fullmatch(name) and name not in zoo_names():
            raise UserError(
                f"model {name!r} is not in the zoo (`coralline zoo list`), nor a path that ends in "
                ".tflite"
            )
        given.append(name)
    return given


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise UserError(f"{name}: no such file; give the path of a .tflite model")
    return Path(name)


def _upload(file: Path, where: str) -> str:
    from coralline.graph import read_graph
    from hardware_lab.lab import open_lab

    if not where.startswith(("http://", "https://")):
        raise UserError(
            f"{file}: no pod can read it; set CORALLINE_LAB to the address of the lab's service, "
            "which hands it on"
        )
    read_graph(file)  # what is no model is told here, and not by the run
    return f"{file.name.replace('@', '-')}@{open_lab(where).artifacts.put(file)}"


def _download(ref: str, out: Path) -> None:
    from hardware_lab.artifacts import MissingError
    from hardware_lab.artifacts.download import download
    from hardware_lab.lab import open_lab

    artifacts = open_lab().artifacts
    try:
        download(artifacts, ref, out)
    except MissingError as error:
        raise DeviceError(f"{error}; submit the file again", retryable=True) from None
    # Who submits it again, by this name, needs it: what counts as put today is not pruned for long.
    artifacts.put(out)
