from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from edgeopt.commands.plan import plan as make
from edgeopt.config import registry
from edgeopt.errors import RecipeError, UsageError
from edgeopt.plugin import Stage
from edgeopt.recipe.chains import find_chain
from edgeopt.recipe.document import ModelPart
from edgeopt.recipe.plan import Plan
from edgeopt.recipe.recipe import Intent
from edgeopt.testing import toys

Write = Callable[..., Path]
MODEL = ModelPart.model_construct(trust=False)
INT8 = Intent("quantize", "int8", {"scheme": "int8"})


def chain(source: str, target: str, *intents: Intent) -> list[str] | None:
    found = find_chain(source, target, intents, MODEL)
    return None if found is None else [registry.plugin_name(stage) for stage in found]


@pytest.mark.parametrize(
    ("source", "target", "intents", "expected"),
    [
        ("keras", "tflite", (), ["keras_to_tflite"]),
        ("keras", "tflite", (INT8,), ["keras_to_tflite", "quantize_tflite"]),
        ("keras", "onnx", (INT8,), ["keras_to_onnx", "quantize_onnx"]),
        (
            "tf_keras",
            "executorch",
            (INT8,),
            [
                "tf_keras_to_keras",
                "keras_to_exported_program",
                "quantize_xnnpack",
                "exported_program_to_executorch",
            ],
        ),
        (
            "keras",
            "torchscript",
            (INT8,),
            ["keras_to_exported_program", "quantize_fx", "torchscript_to_mobile"],
        ),
        (
            "torch",
            "torchscript",
            (),
            ["torch_to_exported_program", "exported_program_to_torchscript", "torchscript_to_mobile"],
        ),
        (
            "torch",
            "tflite",
            (INT8,),
            ["torch_to_exported_program", "exported_program_to_tflite", "quantize_tflite"],
        ),
        ("exported_program", "onnx", (), ["exported_program_to_onnx"]),
        ("torchscript_module", "torchscript", (), ["torchscript_to_mobile"]),
        ("saved_model", "onnx", (INT8,), ["keras_to_onnx", "quantize_onnx"]),
        (
            "saved_model",
            "executorch",
            (),
            ["keras_to_onnx", "onnx_to_exported_program", "exported_program_to_executorch"],
        ),
    ],
)
def test_the_shortest_chain_fulfils_every_intent_once(
    source: str, target: str, intents: tuple[Intent, ...], expected: list[str] | None
) -> None:
    assert chain(source, target, *intents) == expected


THIN = Intent("thin", "much", {})
TRAIN = Intent("train", "training", {})
FINISH = Intent("finish", "always", {}, optional=True)


def test_names_of_class_variables_from_before_still_count() -> None:
    class Old(toys.Toy):
        """As somebody wrote it who knew other names."""

        unsettled: ClassVar[bool] = True

        @property
        def own_minutes(self) -> float:
            return 7.0

    assert Old().needs_finetuning and Old().extra_minutes == 7.0


@pytest.fixture
def with_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy stages for pruning and training, in addition to the shipped ones."""
    known = {"train": toys.Train, "thin": toys.Thin, "make": toys.Toy, "finish": toys.Finish}
    monkeypatch.setattr(registry, "plugins", lambda base: known)


@pytest.mark.parametrize("intents", [(THIN, TRAIN), (TRAIN, THIN)])
@pytest.mark.usefixtures("with_toys")
def test_intents_are_carried_out_in_the_order_that_stages_ask_for(intents: tuple[Intent, ...]) -> None:
    found = find_chain("keras", "tflite", intents, MODEL)
    assert found is not None
    assert [type(stage) for stage in found] == [toys.Toy, toys.Thin, toys.Train, toys.Finish]
    alone = find_chain("keras", "tflite", (TRAIN,), MODEL)
    assert alone is not None
    assert [type(stage) for stage in alone] == [toys.Toy, toys.Train, toys.Finish]


def test_training_without_training_data_is_refused_by_name(write_recipe: Write) -> None:
    plan = make(write_recipe("optimize: {tuned: {finetune: {epochs: 2}}}\n"))
    reason, fix = only(plan)
    assert "needs training data" in reason
    assert "data.train" in fix


def test_slimming_is_on_by_default_where_the_format_has_it(write_recipe: Write) -> None:
    recipe = write_recipe(
        "optimize:\n  int8: {quantize: int8}\n  off: {quantize: int8, slim: false}\n"
        "  on: {quantize: int8, slim: true}\n",
        formats="[tflite, onnx]",
    )
    plan = make(recipe)
    assert not plan.impossible
    slimmed = {
        branch.name: "slim_tflite" in [registry.plugin_name(stage) for stage in branch.stages]
        for branch in plan.branches
    }
    assert slimmed == {
        "float.tflite": False,
        "float.onnx": False,
        "int8.tflite": True,
        "int8.onnx": False,
        "off.tflite": False,
        "off.onnx": False,
        "on.tflite": True,
        "on.onnx": False,
    }


def test_an_option_may_be_for_one_format_alone(write_recipe: Write) -> None:
    plan = make(
        write_recipe(
            "optimize: {int8: {quantize: {scheme: int8, per_channel: false, tflite: {io: int8}}}}\n",
            formats="[tflite, onnx]",
        )
    )
    assert not plan.impossible
    options = {
        branch.format: next(s for s in branch.stages if s.fulfils.get("quantize")).options()
        for branch in plan.branches
        if branch.variant == "int8"
    }
    assert options["tflite"]["io"] == "int8"
    assert options["onnx"].get("io", "float32") == "float32"
    assert not options["tflite"]["per_channel"]
    assert not options["onnx"]["per_channel"]


def test_a_wrong_option_for_one_format_is_named(write_recipe: Write) -> None:
    with pytest.raises(
        RecipeError, match=r"quantize.tflite.per_chanel: unknown option 'per_chanel'; did you mean"
    ):
        make(write_recipe("optimize: {int8: {quantize: {scheme: int8, tflite: {per_chanel: true}}}}\n"))


def test_a_switch_where_a_scheme_is_needed_is_refused(write_recipe: Write) -> None:
    with pytest.raises(RecipeError, match="quantize is not a boolean: give a scheme"):
        make(write_recipe("optimize: {int8: {quantize: true}}\n"))


def test_every_cell_of_the_matrix_has_a_chain(write_recipe: Write) -> None:
    plan = make(
        write_recipe(
            "optimize: {int8: {quantize: int8}}\n", formats="[tflite, onnx, torchscript, executorch]"
        )
    )
    assert not plan.impossible
    assert len(plan.branches) == 8


def only(plan: Plan) -> tuple[str, str]:
    (missing,) = plan.impossible
    return missing.reason, missing.fix


def test_int8_without_calibration_data_is_refused_by_name(write_recipe: Write) -> None:
    path = write_recipe(
        "optimize: {int8: {quantize: int8}}\n", data="{evaluation: {uses: digits, with: {part: evaluation}}}"
    )
    plan = make(path)
    reason, fix = only(plan)
    assert reason == "quantize_tflite needs calibration data"
    assert "data.calibration" in fix
    with pytest.raises(UsageError, match="int8 as tflite: quantize_tflite needs calibration data") as caught:
        plan.demand_possible()
    assert "--keep-going" in caught.value.fix


def test_a_missing_extra_is_named_with_the_command_that_brings_it(
    write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = registry.find(Stage, "keras_to_tflite")
    monkeypatch.setattr(stage, "requires", ("tensorflow", "not-there"))
    plan = make(write_recipe())
    reason, fix = only(plan)
    assert reason == "keras_to_tflite needs not-there, which is not installed"
    assert fix == "in a checkout of edgeopt: pip install '.[keras]'"
    with pytest.raises(UsageError) as caught:
        plan.demand_possible()  # there is no rest to build
    assert (
        caught.value.fix
        == "nothing else is requested; to fetch a published model: edgeopt artifacts pull NAME"
    )


def test_a_format_no_device_runs_is_refused(write_recipe: Write) -> None:
    plan = make(write_recipe(formats="[onnx]", devices="[host-tflite-runtime]"))
    assert only(plan)[0] == "no device of the recipe has a runtime for onnx"


def test_an_option_the_stage_does_not_know_is_refused(write_recipe: Write) -> None:
    path = write_recipe("optimize: {int8: {quantize: {scheme: int8, weight_type: int8}}}\n")
    reason, _ = only(make(path))
    assert reason.startswith("quantize_tflite rejects option 'weight_type': unknown option")
    path = write_recipe("optimize: {int8: {quantize: {scheme: int8, per_chanel: true}}}\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:7:44: .*unknown option 'per_chanel'; did you mean"):
        make(path)


def test_listed_stages_are_completed_to_a_chain(write_recipe: Write) -> None:
    path = write_recipe("optimize: {mine: {stages: [quantize_onnx]}}\n", formats="[onnx]")
    (branch,) = [b for b in make(path).branches if b.variant == "mine"]
    assert [registry.plugin_name(stage) for stage in branch.stages] == ["keras_to_onnx", "quantize_onnx"]


def test_listed_stages_that_do_not_fit_are_refused(write_recipe: Write) -> None:
    path = write_recipe("optimize: {mine: {stages: [keras_to_onnx, quantize_tflite]}}\n", formats="[onnx]")
    assert "quantize_tflite accepts tflite, not onnx" in only(make(path))[0]


def test_a_checkpoint_is_loaded_by_the_key_and_the_arguments_of_the_recipe(
    write_recipe: Write, tmp_path: Path
) -> None:
    (tmp_path / "own_net.py").write_text("def build(classes): ...\n")
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "w.safetensors")
    inputs = "inputs: [{name: x, shape: [1, 1, 8, 8], layout: NCHW}]"
    model = f"{{factory: 'own_net:build', arguments: {{classes: 3}}, weights: w.safetensors, {inputs}}}"
    recipe = write_recipe(model=model, formats="[onnx]", data="", metric="")
    (branch,) = make(recipe, overrides=["model.weights_key=ema.module"]).branches
    options = branch.stages[0].options()
    assert (options["weights_key"], options["arguments"]) == ("ema.module", {"classes": 3})
    with pytest.raises(RecipeError, match="weights_key requires weights"):
        make(recipe, overrides=["model.weights_key=ema", "model.weights=null"])
