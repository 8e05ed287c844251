"""Lint: defects are found, and files that run on the device have no findings."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgeopt.cli import app
from edgeopt.commands.plan import plan
from edgeopt.config.files import file_digest
from edgeopt.devices import lint as lint_module
from edgeopt.devices.budget import _hint, usage
from edgeopt.devices.device import Device, load_device
from edgeopt.devices.estimates import code_band
from edgeopt.devices.lint import errors, expected, lint, lint_artifact, lint_measured, summary
from edgeopt.devices.tables import limits_of
from edgeopt.errors import StageError, UsageError
from edgeopt.formats.known import format_named
from edgeopt.model import Preprocessing
from edgeopt.publish.contract import Arena, BundleFile, Contract
from edgeopt.reports import sarif
from toy_operators import operator, write

IMAGE = (1, 4, 4, 2)
INT8 = ("int8", "int8")
FLOAT = ("float32", "float32")


def device(name: str, **changes: object) -> Device:
    return load_device(name).model_copy(update=changes)


def rules(file: Path, name: str) -> list[tuple[str, str]]:
    return [(finding.severity, finding.rule) for finding in lint(file, load_device(name), "tflite")]


@pytest.mark.parametrize("name", ["kws", "resnet8", "vww", "ad"])
@pytest.mark.parametrize(
    "target", ["cortex-m", "ethos-u55-128", "ethos-u65-256", "host-tflite-runtime", "host"]
)
def test_published_files_have_no_findings(real_data: Path, name: str, target: str) -> None:
    file = real_data / "mlperf-tiny" / f"{name}_reference_int8.tflite"
    assert lint(file, load_device(target), "tflite") == []


def test_an_operator_that_is_not_there(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", operator("TOPK_V2"), shape=IMAGE, types=INT8)
    (finding,) = lint(file, load_device("cortex-m"), "tflite")
    assert (finding.rule, finding.severity) == ("operator", "error")
    assert finding.layer == "TOPK_V2 y;fused"
    assert str(finding).startswith("[operator] TOPK_V2 y;…: tflite-micro 0.dev")
    assert rules(file, "host-tflite-runtime") == []


def test_a_version_that_is_too_new(tmp_path: Path) -> None:
    newest = limits_of("tflite-runtime-2.14").operators["CONV_2D"].version
    assert newest is not None
    known = operator("CONV_2D", newest, weighted=True)
    newer = operator("CONV_2D", newest + 1, weighted=True)
    assert rules(write(tmp_path / "a.tflite", known, shape=IMAGE, types=INT8), "host-tflite-runtime") == []
    file = write(tmp_path / "b.tflite", newer, shape=IMAGE, types=INT8)
    (finding,) = lint(file, load_device("host-tflite-runtime"), "tflite")
    assert finding.rule == "version"
    assert f"but tflite-runtime 2.14.0 supports versions up to {newest}" in finding.message
    # TFLM has one kernel per operator and ignores versions.
    assert rules(file, "cortex-m") == []


@pytest.mark.parametrize(
    ("types", "weights", "found"),
    [
        (FLOAT, "float32", []),
        (INT8, "int8", []),
        (("int16", "int16"), "int8", []),
        (FLOAT, "int8", [("error", "hybrid")]),
        (("uint8", "uint8"), "uint8", [("error", "dtype")]),
        (("int16", "int16"), "int16", [("error", "dtype")]),
    ],
)
def test_types_of_a_convolution_on_tflm(
    tmp_path: Path, types: tuple[str, str], weights: str, found: list[tuple[str, str]]
) -> None:
    conv = operator("CONV_2D", weighted=True)
    file = write(tmp_path / "m.tflite", conv, shape=IMAGE, types=types, weights=weights)
    assert rules(file, "cortex-m") == found


def test_types_of_other_operators(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", operator("EXP"), shape=IMAGE, types=INT8)
    (finding,) = lint(file, load_device("cortex-m"), "tflite")
    assert (finding.rule, finding.severity) == ("dtype", "error")
    assert finding.message.startswith("int8, ")
    assert finding.message.endswith("supports float32")


def test_weights_in_half_precision(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", operator("DEQUANTIZE"), shape=IMAGE, types=("float16", "float32"))
    (finding,) = lint(file, load_device("cortex-m"), "tflite")
    assert finding.rule == "dtype"
    assert "quantize: int8" in finding.fix
    assert rules(file, "host-tflite-runtime") == []


def test_operators_of_tensorflow_and_custom_ones(tmp_path: Path) -> None:
    both = (operator("FlexAddV2"), operator("MyOwn"), operator("TFLite_Detection_PostProcess"))
    file = write(tmp_path / "m.tflite", *both, shape=IMAGE, types=FLOAT)
    for target in ("cortex-m", "host-tflite-runtime"):
        assert rules(file, target) == [("error", "flex"), ("error", "custom")]


def test_shapes_that_are_free(tmp_path: Path) -> None:
    relu = operator("RELU")
    batch = write(tmp_path / "a.tflite", relu, shape=IMAGE, types=INT8, signature=(-1, 4, 4, 2))
    assert rules(batch, "cortex-m") == []
    free = write(tmp_path / "b.tflite", relu, shape=IMAGE, types=INT8, signature=(1, -1, 4, 2))
    assert rules(free, "cortex-m") == [("error", "shape")]
    assert "1×?×4×2" in lint(free, load_device("cortex-m"), "tflite")[0].message
    assert rules(free, "host-tflite-runtime") == []


def test_memory_of_the_device(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", operator("RELU"), shape=(1, 512, 256, 2), types=INT8)
    (finding,) = lint(file, load_device("cortex-m"), "tflite")
    assert (finding.rule, finding.severity) == ("ram", "error")
    assert "alone take 524,288 bytes, but the device has 262,144 bytes of RAM" in finding.message
    # In place: the output of a reshape shares the memory of its input.
    flat = write(tmp_path / "n.tflite", operator("RESHAPE"), shape=(1, 512, 256, 2), types=INT8)
    assert lint(flat, load_device("cortex-m"), "tflite") == []
    size = file.stat().st_size
    limits = load_device("cortex-m").limits.model_copy(update={"flash": size - 1, "ram": None})
    (finding,) = lint(file, device("cortex-m", limits=limits), "tflite")
    assert f"the file is {size:,} bytes, but the device has {size - 1:,}" in finding.message
    assert finding.rule == "flash"


def test_what_the_runtime_told_is_held_against_the_limits() -> None:
    target = load_device("cortex-m")
    assert lint_measured({"arena_bytes": {"value": 262_144, "unit": "bytes"}}, target) == []
    (finding,) = lint_measured({"arena_bytes": {"value": 262_145, "unit": "bytes"}}, target)
    assert finding.message == "the arena is 262,145 bytes, but the device has 262,144 bytes of RAM"


def test_float_files_are_of_no_use_to_an_npu(tmp_path: Path) -> None:
    conv, relu = operator("CONV_2D", weighted=True), operator("RELU")
    whole = write(tmp_path / "a.tflite", conv, relu, shape=IMAGE, types=FLOAT)
    (finding,) = lint(whole, load_device("ethos-u55-128"), "tflite")
    assert (finding.rule, finding.severity) == ("float", "error")
    assert "none of its 2 operators" in finding.message
    assert "quantize: int8" in finding.fix
    part = write(tmp_path / "b.tflite", conv, operator("TOPK_V2"), relu, shape=IMAGE, types=INT8)
    (finding,) = lint(part, load_device("ethos-u55-128"), "tflite")
    assert (finding.rule, finding.severity) == ("operator", "warning")
    assert "falls back to the CPU" in finding.message


def test_damaged_files_are_an_error_of_their_own(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", operator("RELU"), shape=IMAGE, types=INT8)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(StageError, match="is damaged"):
        lint(file, load_device("cortex-m"), "tflite")
    (finding,) = lint_artifact(file, load_device("cortex-m"), "tflite")
    assert (finding.rule, finding.severity) == ("unread", "warning")


def test_findings_of_one_kind_are_told_once(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", *[operator("EXP")] * 5, shape=IMAGE, types=INT8)
    findings = lint(file, load_device("cortex-m"), "tflite")
    assert len(errors(findings)) == 5
    (line,) = summary(findings)
    assert "(and 4 more layers)" in line


def test_the_recipe_already_tells() -> None:
    ethos, micro, host = (load_device(name) for name in ("ethos-u55-128", "cortex-m", "host"))
    for scheme in ((), ("float16",), ("dynamic_int8",), ("int4",)):
        assert "integer-only" in expected(ethos, "tflite", scheme)
        assert expected(ethos, "onnx", scheme) == ""
        assert expected(host, "tflite", scheme) == ""
    assert expected(ethos, "tflite", ("int8",)) == ""
    assert expected(micro, "tflite", ()) == expected(micro, "tflite", ("int8",)) == ""
    assert "hybrid" in expected(micro, "tflite", ("dynamic_int8",))


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("float16", "it cannot dequantize weights stored as float16"),
        ("int4", "it does not support float activations with int4 weights (hybrid)"),
    ],
)
def test_small_weights_are_foreseen_where_nothing_takes_them(
    write_recipe: Callable[..., Path], scheme: str, reason: str
) -> None:
    recipe = write_recipe(
        optimize=f"{{small: {{quantize: {scheme}}}, int8: {{quantize: int8}}}}", devices="[host, cortex-m]"
    )
    (note,) = plan(recipe).notes
    assert note == (
        f"small.tflite will fail on cortex-m: {reason}; quantize weights and activations: quantize: int8"
    )


def test_the_plan_warns(write_recipe: Callable[..., Path]) -> None:
    """Float is only the baseline on an integer device; another float variant was requested."""
    recipe = write_recipe(
        optimize="{int8: {quantize: int8}, plain: {}}", devices="[host, cortex-m, ethos-u55-128]"
    )
    made = plan(recipe)
    assert len(made.notes) == 2
    assert made.notes[0].startswith("float.tflite is built, but not measured on ethos-u55-128: ")
    assert made.notes[1].startswith("plain.tflite will fail on ethos-u55-128: ")
    measured = {branch.variant: [device.name for device in branch.devices] for branch in made.branches}
    assert measured["float"] == ["host", "cortex-m"]
    assert measured["int8"] == measured["plain"] == ["host", "cortex-m", "ethos-u55-128"]


def test_the_command_has_three_answers(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tflite", operator("RELU"), shape=IMAGE, types=INT8)
    bad = write(tmp_path / "bad.tflite", operator("EXP"), shape=IMAGE, types=INT8)
    runner = CliRunner()
    clean = runner.invoke(app, ["lint", str(good), "--device", "cortex-m"])
    assert (clean.exit_code, clean.stdout) == (
        0,
        f"{good} on cortex-m: no findings (tflite-micro)\n"
        "  flash: 420 B for the file and 18.0 KiB to 32.7 KiB for the code of TensorFlow Lite Micro, "
        "2% to 3% of 1.0 MiB\n"
        "  RAM: 64 B for the tensors of the largest operator, under 1% of 256.0 KiB\n"
        f"  RAM is a lower bound, a run takes more; measure it: edgeopt profile {good} --device cortex-m\n",
    )
    found = runner.invoke(app, ["lint", str(bad), "--device", "cortex-m"])
    assert found.exit_code == 1
    assert found.stdout.startswith(f"{bad} on cortex-m: 1 error; it will not run\nerror: EXP y;… [dtype]\n")
    told = runner.invoke(app, ["lint", str(bad), "--device", "cortex-m", "--json"])
    assert told.exit_code == 1
    assert [finding["rule"] for finding in json.loads(told.stdout)["findings"]] == ["dtype"]
    warned = write(
        tmp_path / "w.tflite", operator("RELU"), operator("EXP"), operator("TOPK_V2"), shape=IMAGE, types=INT8
    )
    assert runner.invoke(app, ["lint", str(warned), "--device", "ethos-u55-128"]).exit_code == 0


def test_every_file_is_checked_on_every_device(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tflite", operator("RELU"), shape=IMAGE, types=INT8)
    bad = write(tmp_path / "bad.tflite", operator("EXP"), operator("TOPK_V2"), shape=IMAGE, types=INT8)
    asked = ["lint", str(good), str(bad), "--device", "cortex-m", "--device", "ethos-u55-128"]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 1
    headers = [line for line in found.stdout.splitlines() if " on " in line and line.startswith("/")]
    assert headers == [
        f"{good} on cortex-m: no findings (tflite-micro)",
        f"{good} on ethos-u55-128: no findings (ethos-u55-u65)",
        f"{bad} on cortex-m: 2 errors; it will not run",
        f"{bad} on ethos-u55-128: 1 warning",
    ]
    told = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert [row["device"] for row in told] == ["cortex-m", "ethos-u55-128"] * 2
    both = CliRunner().invoke(app, [*asked[:2], *asked[3:], "--sarif", "x.sarif"])
    assert isinstance(both.exception, UsageError)


def test_the_arena_of_a_bundle_is_that_of_its_manifest(tmp_path: Path) -> None:
    """Where the same runtime was measured with this very file; otherwise, the largest operator is told."""
    file = write(tmp_path / "m.tflite", operator("RELU"), shape=IMAGE, types=INT8)
    board = tmp_path / "board.yaml"
    board.write_text("base: cortex-m\nlimits: {ram: 10 KiB}\n")
    contract = Contract(
        schema=1,
        name="m",
        version="1.0.0",
        variant="int8",
        format="tflite",
        device="cortex-m",
        file=BundleFile(name="m.tflite", sha256=file_digest(file), size_bytes=file.stat().st_size),
        inputs=(),
        outputs=(),
        preprocessing=Preprocessing(),
        arena=Arena(measured_bytes=11_000, recommended_bytes=12_288, margin=0.1, source="arena_bytes on it"),
        runtime="tflm 0.dev1",
    )
    asked = ["lint", str(file), "--device", str(board)]
    for changes, code, ram in (
        ({}, 1, "RAM: 10.7 KiB for the arena (arena_bytes on it), 107% of 10.0 KiB"),
        ({"runtime": "litert 2.1"}, 0, "RAM: 64 B for the tensors"),
        ({"compiled": True}, 0, "RAM: 64 B for the tensors"),
        ({"file": contract.file.model_copy(update={"sha256": "0" * 64})}, 0, "RAM: 64 B for the tensors"),
    ):
        (tmp_path / "manifest.json").write_text(contract.model_copy(update=changes).encode())
        told = CliRunner().invoke(app, asked)
        assert (told.exit_code, ram in told.stdout) == (code, True), told.stdout
        assert ("RAM is a lower bound" in told.stdout) == (code == 0)
        assert ("the arena is 11,000 bytes, but the device has 10,240" in told.stdout) == (code == 1)
    bundle = CliRunner().invoke(app, ["lint", str(tmp_path), *asked[2:]])
    assert bundle.stdout.startswith(f"{file} on board: no findings")
    (tmp_path / "manifest.json").write_text("{}")  # of something else
    assert CliRunner().invoke(app, asked).exit_code == 0


def test_code_scanning_gets_sarif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requirements of SARIF 2.1.0 and of GitHub."""
    (tmp_path / "out models").mkdir()
    nodes = operator("EXP"), operator("RELU"), operator("TOPK_V2")
    bad = write(tmp_path / "out models" / "bad.tflite", *nodes, shape=IMAGE, types=INT8)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "lint.sarif"
    asked = ["lint", str(bad), "--device", "cortex-m", "--sarif", str(out)]
    assert CliRunner().invoke(app, asked).exit_code == 1
    log = json.loads(out.read_text("utf-8"))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "edgeopt"
    assert [rule["id"] for rule in driver["rules"]] == sorted({r["ruleId"] for r in run["results"]})
    findings = lint(bad, load_device("cortex-m"), "tflite")
    assert len(run["results"]) == len(findings) == 2
    for finding, result in zip(findings, run["results"], strict=True):
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == finding.rule
        assert result["level"] == finding.severity
        assert finding.message in result["message"]["text"]
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        assert physical["artifactLocation"]["uri"] == "out%20models/bad.tflite"
        assert physical["region"]["startLine"] == 1
        assert location["logicalLocations"][0]["fullyQualifiedName"] == finding.layer


def test_sarif_of_a_sound_file_clears_what_was_found_before(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tflite", operator("RELU"), shape=IMAGE, types=INT8)
    out = tmp_path / "lint.sarif"
    asked = ["lint", str(good), "--device", "cortex-m", "--sarif"]
    assert CliRunner().invoke(app, [*asked, str(out)]).exit_code == 0
    (run,) = json.loads(out.read_text("utf-8"))["runs"]
    assert run["results"] == run["tool"]["driver"]["rules"] == []
    assert run["automationDetails"]["id"] == "edgeopt-lint/cortex-m/good.tflite/"
    result = CliRunner().invoke(app, [*asked, str(tmp_path / "none" / "lint.sarif")])
    assert isinstance(result.exception, UsageError)


def test_every_rule_of_the_tables_is_described(tmp_path: Path) -> None:
    source = Path(lint_module.__file__).read_text("utf-8")
    told = set(re.findall(r'(?:rule=|finding\(\s*)"(\w+)"', source))
    assert told >= {"flash", "operator", "dtype", "flex", "shape"}
    assert told <= set(sarif.RULES)


def test_wrong_use_is_another_failure(tmp_path: Path) -> None:
    text = tmp_path / "text.tflite"
    text.write_text("not a model, but long enough to be one")
    for arguments in (
        [str(tmp_path / "none.tflite"), "cortex-m"],
        [str(text), "cortex-m"],
        [str(text), "none"],
    ):
        result = CliRunner().invoke(app, ["lint", arguments[0], "--device", arguments[1]])
        assert isinstance(result.exception, UsageError)
        assert result.exception.exit_code == 2


def test_every_table_says_where_it_is_from() -> None:
    for name in ("tflite-micro", "tflite-runtime-2.14", "ethos-u55-u65"):
        table = limits_of(name)
        assert table.source
        assert table.runtime.split()[1][0].isdigit()
        assert {"ADD", "CONV_2D", "FULLY_CONNECTED", "SOFTMAX"} <= set(table.operators)
    assert np.all([limit.version for limit in limits_of("tflite-runtime-2.14").operators.values()])


def test_flash_counts_the_code_of_the_runtime(tmp_path: Path) -> None:
    """By the published sizes: 16 KiB, and 2 to 16.7 KiB for each of three kinds of operators."""
    nodes = (operator("CONV_2D", weighted=True), operator("RELU"), operator("RELU"), operator("SOFTMAX"))
    file = write(tmp_path / "m.tflite", *nodes, shape=IMAGE, types=INT8)
    size = file.stat().st_size
    code = runtime_code(load_device("cortex-m"), 3)
    assert code == (16384 + 3 * 2048, 16384 + 3 * (101824 - 16384) // 5)
    for flash, found in (
        (size + code[1], []),
        (size + code[1] - 1, ["they may not fit into"]),
        (size + code[0], ["they may not fit into"]),
        (size + code[0] - 1, ["they do not fit into"]),
        (size - 1, ["of flash for it"]),
    ):
        small = device("cortex-m", limits=load_device("cortex-m").limits.model_copy(update={"flash": flash}))
        findings = lint(file, small, "tflite")
        assert all(words in finding.message for finding, words in zip(findings, found, strict=True))
        assert [finding.severity for finding in findings] == (
            [] if not found else ["error" if flash < size else "warning"]
        )
    (flash_share, ram_share) = usage(file, load_device("stm32f4"), "tflite").shares
    assert (flash_share.low, flash_share.high) == (size + code[0], size + code[1])
    assert "tflite-micro, pull request 169" in flash_share.sources
    assert (ram_share.low, ram_share.high, ram_share.limit) == (64, None, 128 * 1024)


def runtime_code(target: Device, operators: int) -> tuple[int, int]:
    band = code_band(operators, target.runtimes["tflite"])
    assert band is not None
    return int(band.low), int(band.high)


def test_a_device_without_limits_has_no_shares(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", operator("CONV_2D", weighted=True), shape=IMAGE, types=FLOAT)
    assert usage(file, load_device("host"), "tflite").shares == ()
    assert usage(file, load_device("host"), "tflite").hint == ""
    # An NPU reads tensors in parts: the tensors of one operator are no lower bound.
    assert [share.memory for share in usage(file, load_device("ethos-u55-128"), "tflite").shares] == ["flash"]


@pytest.mark.parametrize(
    ("types", "weights", "hinted"),
    [(FLOAT, "float32", True), (INT8, "int8", False), (FLOAT, "int8", False)],
)
def test_float_files_are_hinted_at_int8(
    tmp_path: Path, types: tuple[str, str], weights: str, hinted: bool
) -> None:
    conv = operator("CONV_2D", weighted=True)
    file = write(tmp_path / "m.tflite", conv, operator("RELU"), shape=IMAGE, types=types, weights=weights)
    assert ("quantize: int8" in usage(file, load_device("stm32h7"), "tflite").hint) == hinted
    told = CliRunner().invoke(app, ["lint", str(file), "--device", "stm32h7", "--json"])
    answer = json.loads(told.stdout)["usage"]
    assert bool(answer["hint"]) == hinted
    assert [share["memory"] for share in answer["shares"]] == ["flash", "RAM"]


def test_axes_are_no_weights(tmp_path: Path) -> None:
    """The constant input of MEAN, which most networks have, is its axes."""
    nodes = (operator("CONV_2D", weighted=True), operator("MEAN", weighted=True))
    for weights, hinted in (("float32", True), ("int8", False)):
        file = write(tmp_path / "m.tflite", *nodes, shape=IMAGE, types=FLOAT, weights=weights)
        read = format_named("tflite").operators(file)
        assert read is not None
        conv, mean = read
        mean = mean._replace(inputs=(mean.inputs[0], "int32"))
        assert bool(_hint([conv, mean])) == hinted


def test_recipes_are_checked_at_their_lines_and_files_elsewhere_are_warnings(tmp_path: Path) -> None:
    good, bad, model = tmp_path / "recipe.yaml", tmp_path / "bad.yml", tmp_path / "a.tflite"
    good.write_text("version: 1\nname: x\nmodel: {path: absent.onnx}\nformats: [onnx]\n")
    bad.write_text("version: 1\nname: x\nmodel: {path: absent.onnx}\nformats: [onix]\noptimise: {}\n")
    write(model, operator("CONV_2D"), shape=IMAGE, types=INT8)
    clean = CliRunner().invoke(app, ["lint", str(good)])
    assert clean.exit_code == 0
    assert clean.stdout.startswith(f"warning: {good}:3:9: model.path: no such file: ")
    found = CliRunner().invoke(app, ["lint", str(good), str(bad), str(model), "--device", "cortex-m"])
    assert found.exit_code == 1
    assert f"error: {bad}:5:1: optimise: unknown key 'optimise'; did you mean 'optimize'?" in found.stdout
    assert "a.tflite on cortex-m: no findings" in found.stdout
    told = json.loads(CliRunner().invoke(app, ["lint", str(good), str(bad), "--json"]).stdout)
    assert [[each["severity"] for each in row["findings"]] for row in told] == [
        ["warning"],
        ["warning", "error", "error"],
    ]
    for wrong in ([str(model)], [str(good), "--sarif", "x.sarif"]):
        assert isinstance(CliRunner().invoke(app, ["lint", *wrong]).exception, UsageError)


def test_two_bit_convolutions_are_wrong_in_litert(tmp_path: Path) -> None:
    convolution, dense = (operator(kind, weighted=True) for kind in ("CONV_2D", "FULLY_CONNECTED"))
    file = write(tmp_path / "c.tflite", convolution, shape=IMAGE, types=FLOAT, weights="int2")
    (finding,) = lint(file, load_device("host"), "tflite")
    assert (finding.rule, finding.severity) == ("fault", "error")
    assert "NaN" in finding.message
    # Dense layers compute what their weights say, and so do convolutions of four bits.
    assert rules(write(tmp_path / "d.tflite", dense, shape=IMAGE, types=FLOAT, weights="int2"), "host") == []
    file = write(tmp_path / "e.tflite", convolution, shape=IMAGE, types=FLOAT, weights="int4")
    assert rules(file, "host") == []
    # Other runtimes have no such type.
    file = write(tmp_path / "f.tflite", convolution, shape=IMAGE, types=INT8, weights="int2")
    assert ("error", "dtype") in rules(file, "cortex-m")
    assert rules(file, "host-tflite-runtime") == [("error", "fault")]
