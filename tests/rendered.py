"""What kustomize makes of a folder of manifests."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml
from manifest_rules import ROOT, Manifests, documented_secrets


def _kustomize() -> list[str]:
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    if os.environ.get("CI"):
        pytest.fail("kustomize is needed; .ci/kustomize FOLDER fetches it")
    pytest.skip("neither kubectl nor kustomize is installed")


@cache
def render(folder: Path) -> Manifests:
    """The objects of a kustomization; skips without kustomize, but in CI."""
    done = subprocess.run([*_kustomize(), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    secrets = documented_secrets((ROOT / "k8s" / "README.md").read_text())
    return Manifests(list(yaml.safe_load_all(done.stdout)), secrets)
