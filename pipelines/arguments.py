"""The arguments that a person gives a pipeline, checked against what it takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from coralline.errors import UserError


def read_arguments(name: str, settings: list[str]) -> dict[str, Any]:
    """Arguments of a pipeline, `code_version` among them where it takes one.

    Args:
        name: Of a pipeline, or path of a compiled one (.yaml).
        settings: NAME=VALUE each; VALUE is YAML.

    Raises:
        UserError: An argument is malformed, unknown, of the wrong type, or missing, or names a
            device, planner or inventory that is not there.
    """
    from components.source import code_version
    from pipelines.registry import NAMES

    pipeline = _load(name)
    inputs = pipeline.component_spec.inputs or {}
    given = dict(_parsed(setting) for setting in settings)
    if "code_version" in inputs:
        given.setdefault("code_version", code_version())
    for key, value in given.items():
        if key not in inputs:
            raise UserError(
                f"pipeline {name} has no argument {key!r}; it has {', '.join(sorted(inputs))}"
            )
        given[key] = _typed(key, value, inputs[key].type, _items(pipeline, key))
    missing = [k for k, spec in inputs.items() if not spec.optional and k not in given]
    if missing:
        raise UserError(f"pipeline {name} needs --set {missing[0]}=VALUE; it has no default")
    if name in NAMES:
        _check_words(given)
    return given


def within_reach(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run in a cluster: models that are files here go to the lab's service.

    Args:
        name: As `read_arguments` takes it; of the files of other pipelines nothing is known.

    Raises:
        UserError: A pod cannot have a model or the inventory.
        DeviceError: The lab's service does not answer.
    """
    from components.model_source import hand_over
    from coralline.devices.model import device_names
    from pipelines.registry import NAMES

    if name not in NAMES:
        return dict(arguments)
    if arguments.get("inventory"):
        raise UserError("--set inventory: no pod can read it; a runner of the lab has its own")
    if arguments.get("device", device_names()[0]) not in device_names():
        raise UserError(f"--set device: no pod can read it; choose {', '.join(device_names())}")
    if "models" not in arguments:
        return dict(arguments)
    service = os.environ.get("CORALLINE_LAB", "")
    return {**arguments, "models": hand_over(arguments["models"], service)}


def _check_words(arguments: Mapping[str, Any]) -> None:
    """What each of our pipelines would find out only in the step that uses it."""
    from coralline.devices.model import load_device
    from coralline.staging import check_planner

    for planner in [*arguments.get("planners", ()), *filter(None, [arguments.get("planner")])]:
        check_planner(planner)
    if "device" in arguments:
        load_device(arguments["device"])
    if arguments.get("inventory"):
        from hardware_lab.inventory import load_inventory

        load_inventory(Path(arguments["inventory"]))


def _parsed(setting: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = setting.partition("=")
    if not equals:
        raise UserError(f"--set {setting}: write NAME=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {setting}: the value is not YAML") from None


def _load(name: str) -> Any:
    if not name.endswith((".yaml", ".yml")):
        from pipelines.registry import load_pipeline

        return load_pipeline(name)
    from kfp import components

    if not Path(name).is_file():
        raise UserError(f"{name}: no such file; make it with `coralline pipeline compile`")
    try:
        return components.load_component_from_file(name)
    except Exception as error:  # KFP and its YAML reader raise many kinds
        raise UserError(
            f"{name}: is no compiled pipeline ({error}); make it with `coralline pipeline compile`"
        ) from None


def _items(pipeline: Any, key: str) -> type | None:
    # Of a list; the compiled form has forgotten it.
    function = getattr(pipeline, "pipeline_func", None)
    annotation = function.__annotations__.get(key) if function else None
    return next(iter(get_args(annotation)), None)


def _typed(key: str, value: Any, wanted: str, items: type | None) -> Any:
    from kfp.dsl.types import type_utils

    whole, double = (type_utils.get_parameter_type(t) for t in (int, float))
    parameter, given = (type_utils.get_parameter_type(t) for t in (wanted, type(value)))
    if (parameter, given) == (double, whole):
        return float(value)
    if parameter != given:
        listed = f"; write {key}=[{value}]" if items is type(value) else ""
        raise UserError(f"--set {key}: {value!r} is not of type {wanted}{listed}")
    if isinstance(value, list) and items is not None:
        for item in value:
            if type(item) is not items and (items, type(item)) != (float, int):
                raise UserError(
                    f"--set {key}: {item!r} in the list is not of type {items.__name__}"
                )
    return value
