"""Settings of every test; this file also lets tests import the modules beside it."""

import os

from hypothesis import settings

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GX_ANALYTICS_ENABLED"] = "false"
# A test that records somewhere says where.
os.environ.pop("MLFLOW_TRACKING_URI", None)

# The machines that run the suite are shared, and a first call compiles.
settings.register_profile("coralline", deadline=None)
settings.load_profile("coralline")
