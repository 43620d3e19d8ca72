from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coralline.errors import UserError
from coralline.graph import read_graph
from coralline.tflite.edgetpu import unmapped_operators
from training.zoo import APPLICATIONS, Recipe, build_model, cache_folder, zoo_names


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORALLINE_CACHE", str(folder / "cache"))
        return build_model("mobilenet", folder / "models", input_size=64)


def test_the_model_is_int8_with_a_fixed_batch_and_maps_whole(model: Path) -> None:
    graph = read_graph(model)
    assert model.name == "mobilenet_64.tflite"
    assert graph.ops.count("DEPTHWISE_CONV_2D") == 13
    # 4,253,864 weights, of which 4 for each of 10,944 normalised channels are folded into one
    # int32 bias; the classifier's 1000 biases are int32, and two constants are axes and shape.
    expected = 4_253_864 - 4 * 10_944 + 4 * 10_944 + 3 * 1000
    assert 0 <= graph.param_bytes.sum() - expected < 100
    assert unmapped_operators(model) == ()


def test_its_answers_differ_between_images(model: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    image, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert image["dtype"] == np.int8
    rng = np.random.default_rng(1)
    answers = []
    for _ in range(3):
        colours = rng.integers(-128, 128, (1, 4, 4, 3), np.int8)
        interpreter.set_tensor(image["index"], np.repeat(np.repeat(colours, 16, 1), 16, 2))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(answer["index"])[0])
    assert all(len(np.unique(a)) > 3 for a in answers)
    assert not np.array_equal(answers[0], answers[1])


def test_a_second_build_comes_from_the_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORALLINE_CACHE", str(model.parents[1] / "cache"))
    monkeypatch.setattr("training.zoo._build", lambda recipe: pytest.fail("built again"))
    again = build_model("mobilenet", tmp_path, input_size=64)
    assert again.read_bytes() == model.read_bytes()


def test_the_cache_knows_recipes_apart() -> None:
    recipes = [
        Recipe("mobilenet", 64),
        Recipe("mobilenet", 96),
        Recipe("mobilenet_v2", 64),
        Recipe("mobilenet", 64, seed=1),
        Recipe("mobilenet", 64, io_type="uint8"),
    ]
    assert len({recipe.digest for recipe in recipes}) == len(recipes)


def test_all_but_one_are_keras_applications() -> None:
    import keras

    assert len(zoo_names()) >= 20
    for name, (constructor, _) in APPLICATIONS.items():
        if name != "hrnet_w32":
            assert callable(getattr(keras.applications, constructor))


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORALLINE_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    with pytest.raises(UserError, match="'lenet' is not in the zoo; choose convnext_tiny"):
        build_model("lenet", tmp_path)
    with pytest.raises(UserError, match="choose int8 or uint8"):
        build_model("mobilenet", tmp_path, io_type="float")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"input size 8: .*its own size is 299"):
        build_model("inception_v3", tmp_path, input_size=8)
