"""TensorFlow without its chatter."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coralline.errors import CorallineError


def load_tensorflow() -> Any:
    """The module tensorflow, on the CPU.

    Some of what it prints while it loads, no log level keeps away.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    with silenced():
        import tensorflow
    return tensorflow


def load_keras() -> Any:
    """The module keras, on the CPU."""
    load_tensorflow()
    import keras

    return keras


@contextmanager
def silenced() -> Iterator[None]:
    """Hold back what Python and C++ print in the block.

    When it fails for a reason that no error of ours explains, all of it goes to stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as said:
        try:
            for target in (1, 2):
                os.dup2(said.fileno(), target)
            yield
        except CorallineError:
            raise
        except Exception:
            sys.stdout.flush()
            sys.stderr.flush()
            said.seek(0)
            with open(kept[1], "wb", closefd=False) as stderr:
                shutil.copyfileobj(said, stderr)
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in enumerate(kept, start=1):
                os.dup2(copy, target)
                os.close(copy)
