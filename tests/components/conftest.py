"""Fixtures of the tests that write to MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components import tracking


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store with all tables: making them takes seconds, copying them does not."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    tracking._client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def sqlite(migrated: Path, tmp_path: Path) -> str:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
