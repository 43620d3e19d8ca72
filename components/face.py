"""What every Kubeflow component of Coralline shares: the image it runs in."""

import os

from kfp import dsl

PROJECT_IMAGE = os.environ.get("CORALLINE_IMAGE", "coralline-python:0.1.0")
"""Holds the whole project, so that components install nothing when they start."""


component = dsl.component(base_image=PROJECT_IMAGE, install_kfp_package=False)
"""Decorator: a component that runs in the project's image.

The function's source is all that is sent, so its body imports what it needs.
"""
