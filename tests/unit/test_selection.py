"""A part of a recipe: variants, formats and devices, and the gates that judge them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgeopt.errors import RecipeError, UsageError
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.selection import Selection

Write = Callable[..., Path]
GATES = """optimize: {a: {quantize: int8}, b: {quantize: dynamic_int8}}
gates:
  - {metric: top1, max_drop: 0.01}
  - {metric: size_bytes, max: 64 KiB, format: tflite}
  - {metric: agreement, min: 0.9, variants: [a, b], formats: [tflite, onnx]}
  - {metric: agreement, min: 0.8, devices: [host]}
"""


@pytest.fixture
def recipe(write_recipe: Write) -> Path:
    return write_recipe(GATES, formats="[tflite, onnx]")


def test_gates_narrow_along_with_a_note(recipe: Path) -> None:
    for options in ({"selection": Selection(formats=("onnx",))}, {"overrides": ["formats=onnx"]}):
        loaded = load_recipe(recipe, **options)  # type: ignore[arg-type]
        assert [(gate.metric, gate.formats) for gate in loaded.gates] == [
            ("top1", ()),
            ("agreement", ("onnx",)),
            ("agreement", ()),
        ]
        assert loaded.notes == (
            "gate 2 (size_bytes) is left out: it judges only format tflite",
            "gate 3 (agreement) does not judge format tflite in this run",
        )
        assert make_plan(loaded).notes[:2] == loaded.notes
        # What the report records can be run again as it is.
        again = load_recipe(recipe, text=loaded.document)
        assert again.gates == loaded.gates and not again.notes


def test_variants_are_those_of_the_recipe_and_float(recipe: Path) -> None:
    loaded = load_recipe(recipe, selection=Selection(variants=("b",)))
    assert [variant.name for variant in loaded.variants] == ["float", "b"]
    assert [gate.variants for gate in loaded.gates] == [(), (), ("b",), ()]
    assert list(yaml.safe_load(loaded.document)["optimize"]) == ["b"]
    assert len(load_recipe(recipe, selection=Selection(variants=("float",))).variants) == 1
    with pytest.raises(UsageError, match="--variant bb: the recipe has no such variant; did you mean 'b'"):
        load_recipe(recipe, selection=Selection(variants=("bb",)))


def test_devices_may_be_others_than_the_recipe_has(recipe: Path) -> None:
    loaded = load_recipe(recipe, selection=Selection(devices=("cortex-m", "cortex-m")))
    assert [device.name for device in loaded.devices] == ["cortex-m"]
    assert loaded.notes == ("gate 4 (agreement) is left out: it judges only devices host",)


def test_what_the_recipe_never_had_stays_a_mistake_at_its_position(write_recipe: Write) -> None:
    gates = (
        "  - {metric: size_bytes, max: 1 MB, formats: [tflite]}\n  - {metric: top1, min: 0, formats: [onx]}\n"
    )
    path = write_recipe(f"gates:\n{gates}", formats="[tflite, onnx]")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, selection=Selection(formats=("onnx",)))
    message = f"{path}:9:28: gates.0.formats: no format 'onx' in this recipe; did you mean 'onnx'?"
    assert message in str(caught.value)
    with pytest.raises(RecipeError, match="no format 'tflight'; did you mean 'tflite'"):
        load_recipe(path, selection=Selection(formats=("tflight",)))
