"""Settings of every test; this file also lets tests import `builders`."""

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GX_ANALYTICS_ENABLED"] = "false"
# A test that records somewhere says where.
os.environ.pop("MLFLOW_TRACKING_URI", None)
