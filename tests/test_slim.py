"""Slimming: bytes saved, bit-identical outputs, refusals."""

import importlib.util
import inspect
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import float_tflite
from edgeopt.cli import app
from edgeopt.errors import StageError, UsageError
from edgeopt.formats.tflite.files import slimming as tflite_slimming
from edgeopt.formats.tflite.files.breakdown import size_breakdown
from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.formats.tflite.files.model_file import data_of, parse
from edgeopt.formats.tflite.files.schema import OPERATORS, SCHEMA, TABLES
from edgeopt.formats.tflite.files.slimming import slimmed, verify
from edgeopt.formats.wire.flatbuffer import Schema, Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context
from edgeopt.stages.quantize_tflite import QuantizeTflite
from edgeopt.stages.quantize_weights_tflite import QuantizeWeightsTflite
from edgeopt.stages.slim_tflite import SlimTflite
from toy_tflite import IDENTIFIER, NOTES, toy

if importlib.util.find_spec("ai_edge_litert") is None:
    pytest.skip("needs the extra 'keras' or 'torch'", allow_module_level=True)

GOALS = {"ad": 273_600, "kws": 32_800, "resnet8": 86_000, "vww": 252_900}


def slim(content: bytes) -> bytes:
    return slimmed(parse(content, "toy"))


def outputs(content: bytes, count: int) -> bytes:
    """All outputs on random int8 inputs, in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    numbers = np.random.default_rng(1)
    result = b""
    for _ in range(count):
        value = numbers.integers(-128, 128, taken["shape"]).astype(taken["dtype"])
        interpreter.set_tensor(taken["index"], value)
        interpreter.invoke()
        result += interpreter.get_tensor(given["index"]).tobytes()
    return result


def contents(model: Table) -> list[bytes]:
    """Content of each tensor of the main graph."""
    buffers = model.tables("buffers")
    return [data_of(buffers[t.integer("buffer")]) for t in model.tables("subgraphs")[0].tables("tensors")]


@pytest.mark.parametrize("behind", [False, True])
def test_outputs_are_the_same_in_less_than_half_the_bytes(behind: bool) -> None:
    before = toy(behind=behind)
    after = slim(before)
    assert len(after) < 0.43 * len(before)
    assert len(after) <= 830
    assert outputs(before, 1000) == outputs(after, 1000)


def test_only_what_nobody_needs_is_gone() -> None:
    model = parse(slim(toy()), "toy").model
    (graph,) = model.tables("subgraphs")
    assert {tensor.text("name") for tensor in graph.tables("tensors")} == {""}
    # The empty one, the weights and the bias that both layers have, and the user's notes.
    assert [len(data_of(buffer)) for buffer in model.tables("buffers")] == [0, 64, 32, len(NOTES)]
    assert len(model.tables("operator_codes")) == 1
    (entry,) = model.tables("metadata")
    assert entry.text("name") == "labels"
    assert data_of(model.tables("buffers")[entry.integer("buffer")]) == NOTES
    (signature,) = model.tables("signature_defs")
    ends = (*signature.tables("inputs"), *signature.tables("outputs"))
    assert [(end.text("name"), end.integer("tensor_index")) for end in ends] == [("image", 0), ("classes", 6)]
    quantization = graph.tables("tensors")[1].table("quantization")
    assert quantization is not None
    assert set(quantization.fields) == {"scale", "zero_point"}


def test_names_of_inputs_and_outputs_stay_where_no_signature_has_them() -> None:
    source = parse(toy(), "toy").model.but("signature_defs")
    model = parse(slim(pack(source, SCHEMA, IDENTIFIER)), "toy").model
    names = [tensor.text("name") for tensor in model.tables("subgraphs")[0].tables("tensors")]
    assert names == ["serving_default_image:0", "", "", "", "", "", "StatefulPartitionedCall:0"]


def test_buffers_behind_the_tables_keep_every_weight() -> None:
    behind = parse(toy(behind=True), "toy").model
    after = parse(slim(toy(behind=True)), "toy").model
    assert contents(behind) == contents(after) == contents(parse(toy(), "toy").model)
    assert sum(map(len, contents(after))) == 2 * (64 + 32)
    assert not any({"offset", "size"} & set(buffer.fields) for buffer in after.tables("buffers"))
    assert slim(toy(behind=True)) == slim(toy())


def test_buffers_stay_aligned_to_16_bytes() -> None:
    file = parse(slim(toy()), "toy")
    starts = [extent.start + 4 for extent in file.extents if extent.owner == "Buffer.data"]
    assert len(starts) == 3
    assert [start % 16 for start in starts] == [0, 0, 0]


def test_slimming_twice_changes_nothing_and_every_process_writes_the_same() -> None:
    once = slim(toy())
    assert slim(once) == once
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_slim as t\n"
    code += "sys.stdout.buffer.write(t.slim(t.toy()))"
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env=environment,
            capture_output=True,
            check=True,
        )
        assert done.stdout == once


def test_other_readers_find_the_same_model() -> None:
    """The schema's own bindings, which share no code with the writer."""
    from ai_edge_litert import schema_py_generated as schema

    before, after = (schema.ModelT.InitFromObj(schema.Model.GetRootAs(c, 0)) for c in (toy(), slim(toy())))
    old, new = before.subgraphs[0], after.subgraphs[0]
    for was, now in zip(old.tensors, new.tensors, strict=True):
        assert (list(was.shape), was.type) == (list(now.shape), now.type)
        assert was.quantization.scale == now.quantization.scale
        assert was.quantization.zeroPoint == now.quantization.zeroPoint
        data = [
            b if b is None else bytes(b)
            for b in (before.buffers[was.buffer].data, after.buffers[now.buffer].data)
        ]
        assert data[0] == data[1]
    for was, now in zip(old.operators, new.operators, strict=True):
        assert list(was.inputs) == list(now.inputs)
        assert vars(was.builtinOptions) == vars(now.builtinOptions)
        assert after.operatorCodes[now.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED


def test_the_schema_is_that_of_the_runtime() -> None:
    """Every table, slot and type as in the bindings shipped with LiteRT."""
    from ai_edge_litert import schema_py_generated as bindings

    source = inspect.getsource(bindings)
    starts = dict(
        re.findall(r"def (\w+)Start\(builder\):\n\s+(?:return )?builder\.StartObject\((\d+)\)", source)
    )
    assert {name: len(fields) for name, fields in SCHEMA.tables.items()} == {
        n: int(c) for n, c in starts.items()
    }
    short = {"Bool": "bool", "Float32": "f32", "UOffsetTRelative": None}
    short |= {
        f"{sign}{bits}": f"{sign[0].lower()}{bits}" for sign in ("Int", "Uint") for bits in (8, 16, 32, 64)
    }
    slots = re.findall(
        r"def (\w+)\(builder, \w+\):\n\s+builder\.Prepend(\w+)Slot\((\d+), .*, ([^,()]+)\)\n", source
    )
    checked = 0
    for function, kind, slot, default in slots:
        table = max((name for name in SCHEMA.tables if function.startswith(f"{name}Add")), key=len)
        field = SCHEMA.tables[table][int(slot)]
        assert field is not None, function
        assert field.name.replace("_", "") == function[len(table) + 3 :].lower()
        if short[kind]:
            assert (field.type, field.vector, field.default) == (short[kind], False, float(default)), function
        else:
            assert field.vector or field.union or field.type == "str" or field.type in SCHEMA.tables, function
        checked += 1
    assert checked > 250
    names = {value: key for key, value in vars(bindings.BuiltinOperator).items() if isinstance(value, int)}
    assert dict(enumerate(OPERATORS)) == names
    for union, members in SCHEMA.unions.items():
        known = vars(getattr(bindings, union))
        assert {name: index for index, name in enumerate(members, 1)} == {
            name: value for name, value in known.items() if isinstance(value, int) and value
        }


def test_a_zip_archive_behind_the_model_moves_along(tmp_path: Path) -> None:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
        archive.writestr("vocabulary.txt", "a b c")
    after = slim(path.read_bytes())
    assert len(after) < len(path.read_bytes()) - 1000
    with zipfile.ZipFile(io.BytesIO(after)) as archive:
        assert archive.testzip() is None
        assert archive.read("labels.txt") == b"cat\ndog\n"
        # For strict readers, offsets count from the start of the file.
        end = after.rfind(b"PK\5\6")
        size, start = struct.unpack_from("<II", after, end + 12)
        assert start + size == end
        for entry in archive.infolist():
            assert after[entry.header_offset : entry.header_offset + 4] == b"PK\3\4"
    assert slim(after) == after
    assert outputs(after, 10) == outputs(toy(), 10)


def test_shapes_that_are_free_stay_free() -> None:
    source = parse(toy(), "toy").model
    (graph,) = source.tables("subgraphs")
    first, *others = graph.tables("tensors")
    free = first.but(shape_signature=Vector("i32", struct.pack("<2i", -1, 8)))
    static = [tensor.but(shape_signature=tensor.fields["shape"]) for tensor in others]
    changed = source.but(subgraphs=(graph.but(tensors=(free, *static)),))
    model = parse(slim(pack(changed, SCHEMA, IDENTIFIER)), "toy").model
    found = [t.numbers("shape_signature") for t in model.tables("subgraphs")[0].tables("tensors")]
    assert found == [[-1, 8], [], [], [], [], [], []]


def test_a_result_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = parse(toy(), "toy")
    verify(before, parse(slim(toy()), "toy"))
    buffers = list(before.model.tables("buffers"))
    buffers[2] = Table("Buffer", {"data": Vector("u8", bytes(64))})
    changed = parse(pack(before.model.but(buffers=tuple(buffers)), SCHEMA, IDENTIFIER), "toy")
    with pytest.raises(StageError, match="would change tensor 1 of graph 0"):
        verify(before, changed)
    monkeypatch.setattr(tflite_slimming, "slim_model", lambda model: model.but("signature_defs"))
    with pytest.raises(StageError, match="would change its signatures"):
        slim(toy())


def test_files_with_places_of_their_own_are_refused() -> None:
    with pytest.raises(StageError, match="compiled for an accelerator"):
        slim(_compiled())


def test_damaged_files_are_refused_at_once() -> None:
    content = toy()
    for end in range(8, len(content), 13):
        with pytest.raises(StageError, match=r"damaged|not a TFLite"):
            slim(content[:end])
    numbers = random.Random(1)
    refused = 0
    start = time.perf_counter()
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(numbers.randrange(1, 4)):
            at = numbers.randrange(8, len(content) - 4)
            damaged[at : at + 4] = numbers.choice([b"\xff" * 4, bytes(4), numbers.randbytes(4)])
        try:
            slim(bytes(damaged))
        except StageError as error:
            refused += 1
            assert "toy" in error.message
    assert refused > 300
    assert time.perf_counter() - start < 20


def test_a_small_file_that_stands_for_a_huge_graph_is_refused() -> None:
    tensor = Table("Tensor", {"shape": Vector("i32", bytes(4)), "buffer": 1})
    graph = Table("SubGraph", {"tensors": (tensor,) * 150})
    parts: Any = {"version": 3, "subgraphs": (graph,) * 150, "buffers": (Table("Buffer", {}),) * 2}
    content = pack(Table("Model", parts), SCHEMA, IDENTIFIER)
    assert len(content) < 2000
    with pytest.raises(StageError, match="reference each other more often"):
        parse(content, "toy")


def test_fields_of_a_later_schema_are_refused_not_lost() -> None:
    with pytest.raises(StageError, match="contains a Model with unknown fields"):
        parse(_later(), "toy")


def test_the_stage_keeps_inputs_and_outputs(tmp_path: Path) -> None:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy())
    (tmp_path / "out").mkdir()
    spec = TensorSpec(name="image", shape=(1, 8), dtype="int8", scale=0.5, zero_point=0)
    source = Model(format="tflite", path=path, inputs=(spec,), outputs=(spec,), transposes=0)
    said: list[str] = []
    result = SlimTflite().run(source, Context(tmp_path / "out", None, said.append))
    assert result == source.model_copy(update={"path": tmp_path / "out" / "model.tflite"})
    assert result.path.read_bytes() == slim(toy())
    assert said == [f"slimmed from {len(toy()):,} to {len(slim(toy())):,} bytes"]
    assert SlimTflite.fulfils == {"slim": {"lossless"}}
    assert SlimTflite.by_default == {"slim": {}}
    assert SlimTflite.after == {"quantize", "coarsen", "distill", "compress"}


def _compiled() -> bytes:
    """A file that cannot be slimmed, because its operators contain file offsets."""
    code = Table("OperatorCode", {"builtin_code": 32, "custom_code": Vector("str", b"DISPATCH_OP")})
    return pack(parse(toy(), "toy").model.but(operator_codes=(code, code)), SCHEMA, IDENTIFIER)


def _later() -> bytes:
    """A file with an unknown field."""
    tables = TABLES.replace(
        "external_buffers:[ExternalBuffer]", "external_buffers:[ExternalBuffer] novelty:i32"
    )
    return pack(parse(toy(), "toy").model.but(novelty=7), Schema(tables, SCHEMA.unions), IDENTIFIER)


@pytest.mark.parametrize(
    ("content", "reason"), [(_compiled, "compiled for an accelerator"), (_later, "with unknown fields")]
)
def test_by_default_a_file_that_cannot_be_slimmed_is_kept(
    tmp_path: Path, content: Callable[[], bytes], reason: str
) -> None:
    path, out = tmp_path / "toy.tflite", tmp_path / "out"
    path.write_bytes(content())
    out.mkdir()
    source = Model(format="tflite", path=path)
    notes: list[str] = []
    context = Context(out, None, lambda line: None, note=notes.append)
    result = SlimTflite(**SlimTflite.by_default["slim"]).run(source, context)
    assert result.path == out / "model.tflite"
    assert result.path.read_bytes() == content()
    assert len(notes) == 1
    assert notes[0].startswith("not slimmed: toy.tflite")
    assert reason in notes[0]
    with pytest.raises(StageError, match=reason):
        SlimTflite(best_effort=False).run(source, context)


def test_a_damaged_file_is_never_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy()[:-100])
    with pytest.raises(StageError, match="damaged"):
        SlimTflite(best_effort=True).run(
            Model(format="tflite", path=path), Context(tmp_path, None, lambda line: None)
        )


SCHEMES = {
    "int8": QuantizeTflite(),
    "int8 per tensor, int8 inputs": QuantizeTflite(per_channel=False, io="int8"),
    "int8x16": QuantizeTflite(scheme="int8x16", io="int16"),
    "int8 with layers apart": QuantizeTflite(layers={"conv2d": "int16", "classes": "float32"}),
    "dynamic_int8": QuantizeWeightsTflite(scheme="dynamic_int8"),
    "float16": QuantizeWeightsTflite(scheme="float16"),
    "int4": QuantizeWeightsTflite(scheme="int4"),
    "int4 unpacked": QuantizeWeightsTflite(scheme="int4", compute="float32"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_can_be_slimmed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, scheme: str
) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("ai_edge_quantizer", "tensorflow")):
        pytest.skip("needs the extra 'keras'")
    source = float_tflite.toy_model("toy", tmp_path_factory)
    made = SCHEMES[scheme].run(source, float_tflite.context(tmp_path / "made", float_tflite.Noise()))
    result = SlimTflite().run(made, float_tflite.context(tmp_path / "slim", None))
    samples = float_tflite.inputs_of(float_tflite.Noise(count=100))
    before, after = (float_tflite.outputs(model.path, samples) for model in (made, result))
    assert np.array_equal(before, after)
    assert result.path.stat().st_size < 0.9 * made.path.stat().st_size
    kept = [g.inputs + g.outputs for g in map(read_signature, (made.path, result.path))]
    assert kept[0] == kept[1]
    types = [
        [
            (op.kind, [t.dtype for t in op.present], [t.dtype for t in op.outputs])
            for op in read_signature(m.path).graph.operations
        ]
        for m in (made, result)
    ]
    assert types[0] == types[1]


@pytest.mark.parametrize("name", sorted(GOALS))
def test_published_files_shrink_to_their_substance(real_data: Path, name: str) -> None:
    before = (real_data / "mlperf-tiny" / f"{name}_reference_int8.tflite").read_bytes()
    after = slim(before)
    assert len(after) <= GOALS[name]
    assert slim(after) == after
    assert outputs(before, 100) == outputs(after, 100)
    told = size_breakdown(parse(after, name))
    assert sum(told.parts.values()) == len(after)
    assert "duplicates" not in told.parts
    assert "unused buffers" not in told.parts


def test_the_command_tells_what_was_saved(tmp_path: Path) -> None:
    file, out = tmp_path / "toy.tflite", tmp_path / "small.tflite"
    file.write_bytes(toy())
    run = CliRunner().invoke(app, ["slim", str(file), "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert out.read_bytes() == slim(toy())
    assert f"{len(toy()):,}" in run.output
    assert "duplicates" in run.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.tflite", "toy.tflite"]
    again = CliRunner().invoke(app, ["slim", str(file), "--out", str(out)])
    assert isinstance(again.exception, UsageError)
    assert "exists" in again.exception.message
    told = CliRunner().invoke(app, ["slim", str(file), "--out", str(out), "--force", "--json"])
    value = json.loads(told.stdout)
    assert value["before"]["size_bytes"] == len(toy())
    assert value["after"]["size_bytes"] == len(slim(toy())) == sum(value["after"]["parts"].values())


def test_the_command_writes_nothing_when_it_fails(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no model")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(toy()[:300])
    out = tmp_path / "out.tflite"
    for file, kind in ((tmp_path / "missing", UsageError), (text, UsageError), (broken, StageError)):
        run = CliRunner().invoke(app, ["slim", str(file), "--out", str(out)])
        assert isinstance(run.exception, kind), run.exception
    run = CliRunner().invoke(app, ["slim", str(text), "--out", str(tmp_path / "no" / "out.tflite")])
    assert isinstance(run.exception, UsageError)
    assert not out.exists()
