"""`coralline.segments/v1`: a folder of .tflite segments and what joins them.

The folder holds one .tflite file a stage and `segments.json`. Tensors are matched by name: a
segment's input is the model's input or the output of some earlier segment, which need not be
the one just before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coralline.errors import UserError, parse_json, read_text
from coralline.files import write_text

SCHEMA = "coralline.segments/v1"
MANIFEST = "segments.json"


@dataclass(frozen=True)
class Segment:
    """One stage's part of the model.

    Attributes:
        file: Name of the .tflite inside the folder.
        inputs: Names of the tensors it reads, in the order of the file's inputs.
        outputs: Names of the tensors it writes, in the order of the file's outputs.
        compiled: What edgetpu_compiler said (file, on-chip and off-chip bytes, mapped and
            unmapped operators); None when it did not run.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compiled: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SegmentSet:
    """A split model.

    Attributes:
        folder: Where the files are.
        model: Name of the whole model.
        model_file: Name of the whole model's copy inside the folder.
        model_digest: SHA-256 of the whole model's bytes.
        inputs: Names of the model's inputs, in its order.
        outputs: Names of the model's outputs, in its order.
        segments: In stage order.
        plan: The plan that made the split, `coralline.plan/v1`.
        bit_equal_inputs: On how many random inputs the chain gave the whole model's bits.
    """

    folder: Path
    model: str
    model_file: str
    model_digest: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    segments: tuple[Segment, ...]
    plan: Mapping[str, Any]
    bit_equal_inputs: int

    def to_json(self) -> dict[str, Any]:
        """The manifest: everything but where the folder is."""
        return {"schema": SCHEMA} | {k: v for k, v in asdict(self).items() if k != "folder"}

    def write(self) -> None:
        """Write the manifest into the folder, last of all its files."""
        write_text(self.folder / MANIFEST, json.dumps(self.to_json(), indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> SegmentSet:
        """Read a folder that `coralline split` wrote.

        Raises:
            UserError: The manifest or a segment is missing or malformed.
        """
        path = folder / MANIFEST
        if folder.is_dir() and not path.exists():
            raise UserError(f"{folder}: holds no {MANIFEST}; make it with `coralline split`")
        data = parse_json(read_text(path, "a folder that `coralline split` wrote"), str(path))
        try:
            if data["schema"] != SCHEMA:
                raise UserError(f"{path}: schema {data['schema']!r}; this version reads {SCHEMA}")
            segments = tuple(
                Segment(s["file"], tuple(s["inputs"]), tuple(s["outputs"]), s["compiled"])
                for s in data["segments"]
            )
            found = SegmentSet(
                folder=folder,
                model=data["model"],
                model_file=data["model_file"],
                model_digest=data["model_digest"],
                inputs=tuple(data["inputs"]),
                outputs=tuple(data["outputs"]),
                segments=segments,
                plan=data["plan"],
                bit_equal_inputs=data["bit_equal_inputs"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: is damaged ({error!r}); run `coralline split` again"
            ) from None
        if not segments:
            raise UserError(f"{path}: names no segments; run `coralline split` again")
        for file in (found.model_file, *(segment.file for segment in segments)):
            if not (folder / file).is_file():
                raise UserError(f"{folder / file}: is missing; run `coralline split` again")
        return found
