from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt.config.references import Code
from edgeopt.errors import RecipeError, UsageError
from edgeopt.recipe.resolve import load_recipe

Write = Callable[..., Path]


def problems_of(path: Path, **options: object) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_all_mistakes_are_reported_together_with_line_and_column(write_recipe: Write) -> None:
    path = write_recipe(
        "optimize:\n  int8: {quantise: int8}\n  int4: {quantize: int3}\ngates:\n  - {metric: top2, max: 1}\n",
        formats="[tflight, onnx]",
        devices="[hots]",
    )
    told = problems_of(path)
    lines = told.splitlines()
    assert f"{path}:6:11: formats.0: no format 'tflight'; did you mean 'tflite'?" in told
    assert "no device 'hots'; did you mean 'host'?" in told
    assert f"{path}:9:10: optimize.int8.quantise: unknown intent 'quantise'; did you mean 'quantize'?" in told
    assert f"{path}:10:10: optimize.int4.quantize: no quantize scheme 'int3'; did you mean 'int8'?" in told
    assert f"{path}:12:6: gates.0.metric: no metric 'top2'; did you mean 'top" in told
    assert len([line for line in lines if line.startswith(str(path))]) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimise: {}\n", "7:1: optimise: unknown key 'optimise'; did you mean 'optimize'?"),
        ("limits: {stage_minutes: soon}\n", "7:10: limits.stage_minutes: input should be a valid number"),
        ("gates: [{metric: top1}]\n", "give exactly one of max, min, max_drop"),
        ("gates: [{metric: size_bytes, max: 3 ms}]\n", "unit 'ms' is not valid here; expected B, kB"),
        ("gates: [{metric: top1, max_drop: .01, devices: [moon]}]\n", "no device 'moon' in this recipe"),
        ("gates: [{metric: top1, max_drop: .01, variants: [int9]}]\n", "no variant 'int9' in this recipe"),
        ("gates: [{metric: top1, max_drop: .01, class: catt}]\n", "no class 'catt'"),
        ("optimize: {float: {quantize: int8}}\n", "'float' is the unmodified baseline"),
        ("optimize: {'../x': {}}\n", "may only contain letters, digits"),
        (
            "optimize: {x: {stages: [quantise_onnx]}}\n",
            "no stage 'quantise_onnx'; did you mean 'quantize_onnx'?",
        ),
        ("name: again\n", "key 'name' is given twice"),
        ("ship: best\n", "ship: input should be 'smallest' or 'fastest'"),
        ("optimize: {a: &x {}, b: *x}\n", "aliases are not supported"),
    ],
)
def test_a_mistake_names_its_place_and_the_nearest_known_name(
    write_recipe: Write, text: str, message: str
) -> None:
    assert message in problems_of(write_recipe(text))


def test_a_missing_file_is_reported_with_every_place_that_was_looked_at(
    write_recipe: Write, tmp_path: Path
) -> None:
    told = problems_of(write_recipe(model="{path: nets/none.keras}"), data_root=tmp_path / "root")
    assert f"no such file: {tmp_path / 'nets/none.keras'} or {tmp_path / 'root/nets/none.keras'}" in told


def test_a_relative_path_is_found_beside_the_recipe_then_under_the_data_root(
    write_recipe: Write, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a.npz", "b.npz"):
        (root / name).touch()
    (tmp_path / "a.npz").touch()
    path = write_recipe(
        data="{evaluation: {uses: npz, with: {path: a.npz}}, calibration: {uses: npz, with: {path: b.npz}}}"
    )
    recipe = load_recipe(path, data_root=root)
    assert recipe.evaluation is not None
    assert recipe.calibration is not None
    assert recipe.evaluation.path == tmp_path / "a.npz"  # type: ignore[attr-defined]
    assert recipe.calibration.path == root / "b.npz"  # type: ignore[attr-defined]


def test_text_that_is_not_yaml_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("version: 1\nname: [a\n")
    assert f"{path}:3:1: not valid YAML" in problems_of(path)


@pytest.mark.parametrize("text", ["", "- 1\n", "!!python/object/apply:os.system ['true']\n"])
def test_other_documents_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    problems_of(path)


def test_a_yaml_tag_never_runs_code(write_recipe: Write, tmp_path: Path) -> None:
    told = problems_of(write_recipe(name=f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']"))
    assert not (tmp_path / "made").exists()
    assert "recipe.yaml:2:" in told


def test_float_is_always_a_variant_and_fidelity_always_measured(write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe("optimize: {int8: {quantize: int8}}\n"))
    assert [variant.name for variant in recipe.variants] == ["float", "int8"]
    assert [type(metric).__name__ for _, metric, _ in recipe.metrics] == [
        "Top1",
        "FidelitySnrDb",
        "Agreement",
        "MaxAbsError",
    ]


def test_settings_override_the_recipe_and_are_checked_like_it(write_recipe: Write) -> None:
    path = write_recipe("gates:\n  - {metric: size_bytes, max: 64 KiB}\n")
    recipe = load_recipe(
        path,
        overrides=["formats=[onnx]", "gates.0.max=0.5 MiB", "limits.stage_minutes=3", "ship=fastest"],
    )
    assert recipe.ship == "fastest"
    assert recipe.formats == ("onnx",)
    assert recipe.gates[0].max == 2**19
    assert recipe.limits.stage_minutes == 3
    assert "no format 'onx'" in problems_of(path, overrides=["formats=[onx]"])
    with pytest.raises(UsageError, match="not of the form"):
        load_recipe(path, overrides=["formats"])


def test_accuracy_without_evaluation_data_is_refused(write_recipe: Write) -> None:
    assert "accuracy needs data.evaluation" in problems_of(write_recipe(data=""))


def test_a_recipe_that_does_not_exist_suggests_a_shipped_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'digits-keras'") as caught:
        load_recipe("digit-keras")
    assert "edgeopt init" in str(caught.value)
    assert load_recipe("digits-keras").name == "digits-keras"


def test_code_is_known_by_all_that_it_imports_beside_it(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("import os, numpy as np\nfrom blocks import block\nimport broken\n")
    (tmp_path / "blocks.py").write_text("def block():\n    from parts.small import conv\n    return conv\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "blocks").mkdir()  # contains data
    (tmp_path / "parts" / "small.py").write_text("from . import nets\nimport blocks\nconv = 1\n")
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "broken.py").write_text("def (\n")
    (tmp_path / "other.py").write_text("import nets\n")
    code = Code(target="nets:build", folder=tmp_path)
    digests = [code.digest()]
    assert Code(target="nets:other", folder=tmp_path).digest() == digests[0]
    (tmp_path / "other.py").write_text("import nets, os\n")
    assert code.digest() == digests[0]
    for changed in ("nets.py", "blocks.py", "parts/small.py", "parts/__init__.py", "broken.py"):
        with (tmp_path / changed).open("a") as file:
            file.write("# changed\n")
        digests.append(code.digest())
    assert len(set(digests)) == 6


def test_preprocessing_understands_fractions(write_recipe: Write) -> None:
    assert load_recipe(write_recipe()).model.preprocess.scale == 1 / 16


def test_a_document_that_cannot_be_used_still_has_its_names_looked_up(write_recipe: Write) -> None:
    path = write_recipe(
        "optimize: {int8: {quantise: int8}}\ngates:\n  - {metric: top1, max_dorp: 1}\n",
        metric="topl",
        formats="[tensorrt]",
        devices="[hots]",
    )
    told = problems_of(path)
    for message in (
        "no metric 'topl'",
        "no format 'tensorrt'",
        "no device 'hots'",
        "unknown intent 'quantise'",
    ):
        assert message in told
    assert "unknown key 'max_dorp'; did you mean 'max_drop'?" in told


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        ("{metric: top1, min: 0.9, confidence: 0.95}", "confidence requires max_drop"),
        ("{metric: top1, max_drop: 0.1, confidence: 2}", "less than 1"),
        ("{metric: top1, max_drop: 0.1, undecided: maybe}", "fail"),
        ("{metric: top1, max_ratio: 2, class: 3}", "classes require max_drop"),
        ("{metric: top1, max_drop: 0.1, class: cat}", "no class 'cat'; model.labels is empty"),
        ("{metric: top1, max_drop: 0.1, class: 3, classes: [4]}", "give class or classes, not both"),
        ("{metric: size_bytes, max: 12 ms}", "unit 'ms' is not valid here"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(write_recipe: Write, gate: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe(write_recipe(f"gates:\n  - {gate}\n"))


def test_a_metric_of_the_whole_set_may_have_a_confident_gate(write_recipe: Write) -> None:
    gate = "{metric: f1, max_drop: 0.01, confidence: 0.95}"
    (found,) = load_recipe(write_recipe(metric="[top1, f1]", gates=f"[{gate}]")).gates
    assert str(found) == "f1 max_drop 0.01 confidence=0.95"
    with pytest.raises(RecipeError, match="f1 is a metric of the whole set, and the samples of one class"):
        load_recipe(write_recipe(metric="f1", gates="[{metric: f1, max_drop: 0.01, class: 3}]"))


def test_two_gates_that_contradict_are_refused(write_recipe: Write) -> None:
    text = "gates:\n  - {metric: size_bytes, min: 10 kB}\n  - {metric: size_bytes, max: 9 kB}\n"
    with pytest.raises(RecipeError, match=r"gates.1: contradicts the gate 'size_bytes min 10000'"):
        load_recipe(write_recipe(text))
    load_recipe(write_recipe(text.replace("max: 9 kB", "max: 9 kB, formats: [tflite]")))


def test_a_gate_may_name_one_or_several(write_recipe: Write) -> None:
    text = "gates: [{metric: top1, max_drop: 1 %, class: 3, format: tflite, confidence: 0.95}]\n"
    (gate,) = load_recipe(write_recipe(text)).gates
    assert (gate.classes, gate.formats, gate.confidence) == (("3",), ("tflite",), 0.95)
    assert str(gate) == "top1 max_drop 0.01 formats=tflite classes=3 confidence=0.95"


def test_code_may_be_named_by_its_file(tmp_path: Path) -> None:
    package = tmp_path / "src" / "doors" / "nets"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "small.py").write_text("class Net: ...\n")
    for written in (f"{package}/small.py:Net", "src/doors/nets/small.py:Net"):
        code = Code.model_validate(written, context={"roots": (tmp_path,)})
        assert (code.target, code.folder) == ("doors.nets.small:Net", tmp_path / "src")
    for wrong, message in (
        ("none.py:Net", "no such file"),
        ("src/doors/nets/small.py:Nett", "did you mean 'Net'"),
    ):
        with pytest.raises(ValueError, match=message):
            Code.model_validate(wrong, context={"roots": (tmp_path,)})


def test_a_guess_is_repeated_until_it_is_confirmed(write_recipe: Write) -> None:
    path = write_recipe("guessed: {model.preprocess: by trying}\ntarget: pi\n")
    recipe = load_recipe(path)
    assert recipe.notes == ("preprocessing guessed by trying",)
    assert recipe.target is not None and recipe.target.title == "a Raspberry Pi"
    for stated in ("model.preprocess={scale: 2}", "model.preprocess.scale=2"):
        assert load_recipe(path, overrides=[stated]).notes == ()
    assert load_recipe(path, overrides=["model.labels=[a, b]"]).notes == recipe.notes
    wrong = problems_of(write_recipe("guessed: {model.shape: so}\ntarget: tv\n"))
    assert "guessed.model.shape" in wrong
    assert "target: input should be 'phone', 'pi' or 'mcu'" in wrong
