import dataclasses
import importlib.metadata
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import toy_tflite
from edgeopt.commands.reproduce import Reproduction, reproduce
from edgeopt.config.files import content_digest, file_digest
from edgeopt.config.registry import plugin_name
from edgeopt.errors import CannotRunError, StageError, UsageError, VerificationError
from edgeopt.formats.known import format_named
from edgeopt.formats.tflite.files.model_file import parse
from edgeopt.formats.tflite.files.slimming import slimmed
from edgeopt.publish.trust.provenance import FILE, portable, statement
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Artifact, Report, Result, Run, SourceResult
from edgeopt.run.build import build
from edgeopt.run.preflight import datasets_of
from edgeopt.run.store import Store

ONNX, TFLITE = format_named("onnx"), format_named("tflite")
TORCHSCRIPT, EXECUTORCH = format_named("torchscript"), format_named("executorch")
SUFFIXES = {"tflite": ".tflite", "onnx": ".onnx", "torchscript": ".ptl", "executorch": ".pte"}


def publish(
    recipe: str | Path, branch_name: str, folder: Path, store: Path, data: Path | None = None
) -> Path:
    """Build one artifact of a recipe and write the parts of a bundle that reproduction needs."""
    plan = make_plan(load_recipe(recipe, data_root=data))
    branch = next(branch for branch in plan.branches if branch.name == branch_name)
    (built,) = build(dataclasses.replace(plan, branches=(branch,)), Store(store), lambda event: None)
    assert built.complete, built.failure
    folder.mkdir(parents=True)
    model = folder / f"model{SUFFIXES[branch.format]}"
    shutil.copyfile(built.steps[-1].model.path, model)
    row = Result(
        variant=branch.variant,
        format=branch.format,
        device="host",
        status="ok",
        artifact=Artifact(path=f"models/{model.name}", digest=file_digest(model), size_bytes=1),
        chain=tuple(plugin_name(stage) for stage in branch.stages),
    )
    digests = {f"{part}_digest": dataset.digest() for part, dataset in datasets_of(plan.recipe).items()}
    source = plan.source
    report = Report(
        recipe=plan.recipe.name,
        run=Run(
            started="2026-11-23T01:02:03+00:00",
            seconds=1.0,
            command="edgeopt",
            edgeopt=importlib.metadata.version("edgeopt"),
            document=plan.recipe.document,
            **digests,
        ),
        source=SourceResult(format=source.format, path=source.path.name, digest=content_digest(source.path)),
        results=(row,),
    )
    (folder / "recipe.yaml").write_text(portable(plan.recipe.document), "utf-8")
    versions = {name: v for stage in branch.stages for name, v in stage.versions().items()}
    record = {"digest": file_digest(model), "versions": versions}
    files = {path.name: file_digest(path) for path in folder.iterdir()}
    told = statement(
        report, row, name="toy", version="1", models=["model.tflite"], files=files, record=record
    )
    (folder / FILE).write_text(json.dumps(told))
    return folder


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    told = json.loads((bundle / FILE).read_text())
    change(told)
    (bundle / FILE).write_text(json.dumps(told))


def replace_model(bundle: Path, content: bytes) -> None:
    """Pretend that the recorded build produced these bytes."""
    model = bundle / "model.tflite"
    model.write_bytes(content)
    rewrite(bundle, lambda told: told["subject"][0]["digest"].update(sha256=file_digest(model)))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle of the digits model as int8 TFLite, and the store with its steps."""
    folder = tmp_path_factory.mktemp("digits")
    return publish("digits-keras", "int8.tflite", folder / "bundle", folder / "store"), folder / "store"


@pytest.fixture
def bundle(built: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "bundle"))


@pytest.fixture
def again(built: tuple[Path, Path], bundle: Path) -> Callable[..., Reproduction]:
    """Reproduce the bundle with the steps already built."""

    def again(**more: Any) -> Reproduction:
        return reproduce(bundle, **{"store": built[1]} | more)

    return again


def test_a_clean_store_gives_the_same_bytes(bundle: Path) -> None:
    events: list[str] = []
    found = reproduce(bundle, watch=lambda event: events.append(event.status))
    assert (found.verdict, found.exit_code, found.differences) == ("same", 0, ())
    assert found.recorded == found.rebuilt == file_digest(bundle / "model.tflite")
    assert "cached" not in events and "done" in events
    assert str(found).startswith("toy@1, int8.tflite for host: same\n  recorded ")
    assert sorted(path.name for path in bundle.iterdir()) == ["model.tflite", FILE, "recipe.yaml"]


@pytest.mark.slow
def test_the_kws_model_is_built_again_byte_for_byte(real_data: Path, tmp_path: Path) -> None:
    made = publish("mlperf-tiny-kws", "int8.tflite", tmp_path / "bundle", tmp_path / "store", real_data)
    assert reproduce(made, data_root=real_data).verdict == "same"


def test_other_names_and_places_are_the_same_graph(bundle: Path, again: Callable[..., Reproduction]) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    root = schema.ModelT.InitFromPackedBuf(bytearray((bundle / "model.tflite").read_bytes()), 0)
    for number, tensor in enumerate(root.subgraphs[0].tensors):
        tensor.name = f"called otherwise {number}"
    root.description = "made on another day"
    builder = Builder(1024)
    builder.Finish(root.Pack(builder), file_identifier=b"TFL3")
    replace_model(bundle, bytes(builder.Output()))
    found = again()
    assert (found.verdict, found.exit_code) == ("same graph and tensors", 0)
    assert found.recorded != found.rebuilt


def test_one_other_weight_is_different_and_told(bundle: Path, again: Callable[..., Reproduction]) -> None:
    content = bytearray((bundle / "model.tflite").read_bytes())
    model = parse(bytes(content), "model")
    weights = max((e for e in model.extents if e.owner == "Buffer.data"), key=lambda e: e.end - e.start)
    content[weights.end - 1] ^= 1
    replace_model(bundle, bytes(content))

    def older(told: dict[str, Any]) -> None:
        for each in told["predicate"]["buildDefinition"]["resolvedDependencies"]:
            if each["name"] == "tensorflow":
                each["uri"] = "pkg:pypi/tensorflow@2.20.0"

    rewrite(bundle, older)
    found = again()
    assert (found.verdict, found.exit_code) == ("different", 1)
    assert found.differences[0].startswith("first difference: the constant input 1 of operator ")
    installed = importlib.metadata.version("tensorflow")
    assert found.differences[1:] == (f"tensorflow {installed}; recorded: 2.20.0",)


def test_what_a_compiler_was_given_is_compared(bundle: Path, again: Callable[..., Reproduction]) -> None:
    built = file_digest(bundle / "model.tflite")
    replace_model(bundle, b"compiled for an accelerator")

    def compiled(told: dict[str, Any], digest: str = built) -> None:
        told["predicate"]["runDetails"]["byproducts"] = [{"name": "built", "digest": {"sha256": digest}}]

    rewrite(bundle, compiled)
    found = again()
    assert (found.verdict, found.recorded) == ("same", built)
    assert found.notes == ("the output of the compiler of host was not rebuilt",)
    rewrite(bundle, lambda told: compiled(told, "0" * 64))
    assert again().verdict == "different"


def test_other_data_is_refused_with_both_digests(bundle: Path, again: Callable[..., Reproduction]) -> None:
    def other(told: dict[str, Any]) -> None:
        for each in told["predicate"]["buildDefinition"]["resolvedDependencies"]:
            if each["name"] == "calibration":
                each["digest"] = {"edgeoptContent": "0" * 64}

    digest = load_recipe("digits-keras").calibration.digest()  # type: ignore[union-attr]
    rewrite(bundle, other)
    expected = f"data.calibration is not the data .* {digest}, recorded is {'0' * 64}"
    with pytest.raises(UsageError, match=expected):
        again()


def test_another_model_in_its_place_is_refused(
    bundle: Path, again: Callable[..., Reproduction], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "digits").mkdir(parents=True)
    recorded = file_digest(Path(make_plan(load_recipe("digits-keras")).source.path))
    original = Path(make_plan(load_recipe("digits-keras")).source.path).read_bytes()
    with zipfile.ZipFile(tmp_path / "mine" / "digits" / "digits.keras", "w") as copy:
        source = tmp_path / "original.keras"
        source.write_bytes(original)
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                copy.writestr(name, archive.read(name))
    with pytest.raises(UsageError, match=f"is not the model .* recorded is {recorded}"):
        again(beside=[tmp_path / "mine"])


def test_a_bundle_that_is_not_what_its_provenance_says_is_refused(
    bundle: Path, again: Callable[..., Reproduction]
) -> None:
    (bundle / "recipe.yaml").write_text("version: 1\n")
    with pytest.raises(VerificationError, match=r"recipe\.yaml does not match its digest"):
        again()
    (bundle / "model.tflite").write_bytes(b"other")
    with pytest.raises(VerificationError, match=r"model\.tflite does not match its digest"):
        again()
    rewrite(bundle, lambda told: told["subject"][0].update(name="../model.tflite"))
    with pytest.raises(VerificationError, match="is not an acceptable file name"):
        again()
    (bundle / FILE).unlink()
    with pytest.raises(VerificationError, match="cannot read the provenance"):
        again()


def with_recipe(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Replace the recorded recipe."""
    told = json.loads((bundle / FILE).read_text())
    recorded = told["predicate"]["buildDefinition"]["externalParameters"]["recipe"]
    document = yaml.safe_load(recorded["text"])
    change(document)
    recorded["text"] = yaml.safe_dump(document, sort_keys=False)
    (bundle / FILE).write_text(json.dumps(told))


def test_a_recipe_does_not_run_code_of_its_choice(
    bundle: Path, again: Callable[..., Reproduction], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    evil = {
        "factory": "os:system",
        "arguments": {"command": f"touch {mark}"},
        "weights": "digits/digits.safetensors",
    }
    inputs = [{"name": "image", "shape": [1, 1, 8, 8]}]
    for change, told in (
        (lambda d: d.update(model=evil | {"inputs": inputs}), "from outside the given folders: os:system"),
        (lambda d: d["data"].update(calibration={"uses": "antigravity:geohash"}), "antigravity:geohash"),
        (lambda d: d["model"].update(trust=True), "may run code"),
    ):
        recorded = (bundle / FILE).read_bytes()
        with_recipe(bundle, change)
        with pytest.raises(UsageError, match=told) as caught:
            again()
        (bundle / FILE).write_bytes(recorded)
        assert "allow it with --trust" in str(caught.value)
    assert not mark.exists()


def test_labels_are_not_taken_for_code(bundle: Path, again: Callable[..., Reproduction]) -> None:
    with_recipe(bundle, lambda d: d["model"].update(labels=["os:system", *"123456789"]))
    assert again().verdict == "same"


def test_what_is_not_here_is_told_with_the_way_to_name_it(
    bundle: Path, again: Callable[..., Reproduction]
) -> None:
    with_recipe(
        bundle, lambda d: d["data"]["evaluation"].update(uses="npz", **{"with": {"path": "none.npz"}})
    )
    assert again().verdict == "same"  # gates do not affect the build
    with_recipe(bundle, lambda d: d["model"].update(path="elsewhere/digits.keras"))
    with pytest.raises(UsageError, match="no such file") as caught:
        again()
    assert "--beside DIR" in str(caught.value)
    with_recipe(bundle, lambda d: d.update(optimize={}))
    with pytest.raises(VerificationError, match="has no variant 'int8'"):
        again()


def test_what_cannot_be_built_says_why(bundle: Path, again: Callable[..., Reproduction]) -> None:
    with_recipe(bundle, lambda d: d["data"].pop("calibration"))
    with pytest.raises(CannotRunError, match="needs calibration data"):
        again()


def tflite(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_tflite_files_are_compared_by_what_they_compute(tmp_path: Path) -> None:
    plain = tflite(tmp_path / "plain.tflite", toy_tflite.toy())
    behind = tflite(tmp_path / "behind.tflite", toy_tflite.toy(behind=True))
    slim = tflite(tmp_path / "slim.tflite", slimmed(parse(toy_tflite.toy(), "toy")))
    digests = {TFLITE.semantic_digest(path) for path in (plain, behind, slim)}
    assert len(digests) == 1 and len({file_digest(path) for path in (plain, behind, slim)}) == 3
    assert TFLITE.first_difference(plain, slim) == ""
    content = bytearray(slim.read_bytes())
    scale = np.float32(0.02).tobytes()
    content[content.index(scale) : content.index(scale) + 4] = np.float32(0.03).tobytes()
    other = tflite(tmp_path / "other.tflite", bytes(content))
    assert TFLITE.semantic_digest(other) not in digests
    assert "operator 0 (FULLY_CONNECTED)" in TFLITE.first_difference(slim, other)
    with pytest.raises(StageError):
        TFLITE.semantic_digest(tflite(tmp_path / "no.tflite", b"none"))


def network(
    path: Path, *, names: str = "", swap: bool = False, raw: bool = True, weight: float = 1.0, **more: Any
) -> Path:
    """Two added branches; ``swap`` writes them in the other order, which computes the same."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = np.array([[weight, 2.0], [3.0, 4.0]], np.float32)
    first = numpy_helper.from_array(values, f"{names}w")
    if not raw:
        first = helper.make_tensor(f"{names}w", TensorProto.FLOAT, (2, 2), values.ravel().tolist())
    second = numpy_helper.from_array(np.ones((2, 2), np.float32), f"{names}v")
    left = helper.make_node("MatMul", ["x", first.name], [f"{names}l"], name=f"{names}n1")
    right = helper.make_node("Gemm", ["x", second.name], [f"{names}r"], transB=more.get("transB", 1))
    end = helper.make_node("Sub", [f"{names}{more.get('minuend', 'l')}", f"{names}r"], ["y"])
    nodes, tensors = [left, right, end], [first, second]
    if swap:
        nodes, tensors = [right, left, end], [second, first]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph(nodes, f"{names}graph", [ends[0]], [ends[1]], tensors)
    model = helper.make_model(
        graph, producer_name=names, opset_imports=[helper.make_opsetid("", more.get("opset", 17))]
    )
    onnx.save(model, str(path))
    return path


def test_onnx_files_are_compared_by_what_they_compute(tmp_path: Path) -> None:
    plain = network(tmp_path / "plain.onnx")
    for number, noise in enumerate(({"names": "other"}, {"swap": True}, {"raw": False})):
        other = network(tmp_path / f"{number}.onnx", **noise)
        assert other.read_bytes() != plain.read_bytes()
        assert ONNX.semantic_digest(other) == ONNX.semantic_digest(plain)
    for change, told in (
        ({"weight": 1.5}, "the constant input 1 of operator 0 (MatMul)"),
        ({"transB": 0}, "the options of operator 1 (Gemm)"),
        ({"minuend": "r"}, "the connections between operators"),
        ({"opset": 18}, "the versions of the operator sets"),
    ):
        other = network(tmp_path / "changed.onnx", **change)
        assert ONNX.semantic_digest(other) != ONNX.semantic_digest(plain)
        assert ONNX.first_difference(plain, other) == told


def test_graphs_within_operators_count(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    def branching(path: Path, added: str, outer: str = "outer") -> Path:
        info = helper.make_tensor_value_info
        bodies = [
            helper.make_graph(
                [helper.make_node(kind, ["x", outer], [f"{kind}y"])],
                kind,
                [],
                [info(f"{kind}y", TensorProto.FLOAT, [1])],
            )
            for kind in ("Mul", added)
        ]
        nodes = [
            helper.make_node("Neg", ["x"], [outer]),
            helper.make_node("If", ["which"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
        ]
        inputs = [info("which", TensorProto.BOOL, []), info("x", TensorProto.FLOAT, [1])]
        graph = helper.make_graph(nodes, "g", inputs, [info("y", TensorProto.FLOAT, [1])])
        onnx.save(helper.make_model(graph), str(path))
        return path

    plain, renamed = branching(tmp_path / "a.onnx", "Add"), branching(tmp_path / "b.onnx", "Add", "inner")
    other = branching(tmp_path / "c.onnx", "Sub")
    assert ONNX.semantic_digest(plain) == ONNX.semantic_digest(renamed)
    assert ONNX.semantic_digest(plain) != ONNX.semantic_digest(other)
    assert ONNX.first_difference(plain, other) == "operator 0 (Add) is Sub within operator 1 (If)"


def test_torchscript_files_are_compared_by_their_members(tmp_path: Path) -> None:
    def archive(name: str, year: int, **more: bytes) -> Path:
        members = {"bytecode.pkl": b"code", "constants/0": b"1234", ".data/serialization_id": name.encode()}
        members |= {key.replace("_", "/"): value for key, value in more.items()}
        with zipfile.ZipFile(tmp_path / f"{name}.ptl", "w") as file:
            for member, content in members.items():
                file.writestr(zipfile.ZipInfo(f"{name}/{member}", (year, 1, 1, 0, 0, 0)), content)
        return tmp_path / f"{name}.ptl"

    first, second = archive("first", 1980), archive("second", 2026)
    third = archive("third", 1980, constants_0=b"1235")
    assert TORCHSCRIPT.semantic_digest(first) == TORCHSCRIPT.semantic_digest(second)
    assert TORCHSCRIPT.semantic_digest(first) != TORCHSCRIPT.semantic_digest(third)
    assert TORCHSCRIPT.first_difference(first, second) == ""
    assert TORCHSCRIPT.first_difference(first, third) == "member constants/0"
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(StageError, match="is damaged"):
        TORCHSCRIPT.semantic_digest(first)


def test_executorch_files_are_compared_byte_by_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pte", tmp_path / "b.pte"
    first.write_bytes(bytes(3 << 20))
    second.write_bytes(bytes(2 << 20) + b"\1" + bytes((1 << 20) - 1))
    assert EXECUTORCH.semantic_digest(first) == file_digest(first)
    assert EXECUTORCH.first_difference(first, second) == "byte 2,097,152 of 3,145,728"
    assert EXECUTORCH.first_difference(first, first) == ""
    second.write_bytes(bytes(1 << 20))
    assert EXECUTORCH.first_difference(first, second) == "byte 1,048,576 of 3,145,728"


def test_the_program_stays_light() -> None:
    import subprocess
    import sys

    program = (
        "import sys, edgeopt.commands.reproduce\n"
        "print({'onnx', 'torch', 'tensorflow', 'cyclonedx'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
