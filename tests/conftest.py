"""Settings of every test; this file also lets tests import the modules beside it."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from benchmarks.postgresql_server import binaries

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GX_ANALYTICS_ENABLED"] = "false"
# A test that records somewhere says where.
os.environ.pop("MLFLOW_TRACKING_URI", None)

# The machines that run the suite are shared, and a first call compiles.
settings.register_profile("coralline", deadline=None)
settings.load_profile("coralline")


@pytest.fixture(scope="session")
def postgresql_binaries() -> Path:
    """The folder with PostgreSQL's server; a test that asks for it is skipped without one."""
    folder = binaries()
    if folder is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL's server is needed; apt-get install postgresql")
        pytest.skip("PostgreSQL's server is not installed (Debian package postgresql)")
    return folder
