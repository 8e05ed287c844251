"""Files with coded weights in TensorFlow Lite Micro: outputs keep every bit, and runs say so."""

import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from edgeopt.commands.optimize import optimize
from edgeopt.devices.environments import environment_python
from edgeopt.errors import StageError, UsageError
from edgeopt.formats.tflite.files import weight_coding
from edgeopt.formats.tflite.files.graphs import graphs_of, read_signature
from edgeopt.formats.tflite.files.model_file import load, parse
from edgeopt.formats.tflite.graph.interpreter import outputs
from edgeopt.model import Model, Preprocessing
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.publish.bundle import make_bundle, publishable
from edgeopt.stages.coarsen_tflite import CoarsenTflite
from edgeopt.stages.compress_tflm import CODINGS, CompressTflm
from needs import needs
from toy_layers import IMAGE, SHAPES, few_values, two_layers

needs("ai_edge_litert", "jinja2")

SEVEN = (0, 20, -20, 40, -40, 60, -60)
COMPARE = """
import sys
from pathlib import Path
import numpy as np
from tflite_micro.python.tflite_micro import runtime

def outputs(path):
    model = runtime.Interpreter.from_file(str(path), arena_size=1 << 20)
    random = np.random.default_rng(0)
    for _ in range(4):
        model.set_input(random.integers(-128, 128, (1, 8, 8, 16)).astype(np.int8), 0)
        model.invoke()
        yield np.array(model.get_output(0))

for number in range(20):
    folder = Path(sys.argv[1]) / str(number)
    before, after = (list(outputs(folder / name)) for name in ("before.tflite", "model.tflite"))
    print("same" if np.std(before) > 0.5 and np.array_equal(before, after) else f"{number} differs")
"""
RECIPE = """
version: 1
name: coded
model: {path: model.tflite, inputs: [{name: image, shape: [1, 8, 8, 16], dtype: int8, layout: NHWC}]}
optimize:
  coded: {stages: [{uses: compress_tflm, with: {coding: huffman}}]}
formats: [tflite]
devices: [cortex-m]
"""


def test_every_width_is_decoded_to_the_same_bits(
    tmp_path: Path, made_environment: Callable[[str], None]
) -> None:
    made_environment("cortex-m")
    cases = product(("tables", "huffman"), (False, True), (2, 3, 7, 12, 40))
    for number, (coding, per_channel, count) in enumerate(cases):
        values = [0, *(sign * 3 * each for each in range(1, 21) for sign in (1, -1))][:count]
        folder = tmp_path / str(number)
        folder.mkdir()
        before = folder / "before.tflite"
        before.write_bytes(two_layers(few_values(values), per_channel=per_channel))
        stage = CompressTflm.model_validate({"coding": coding})
        stage.run(Model(format="tflite", path=before), Context(folder, None, print))
    python = environment_python("cortex-m")
    done = subprocess.run([python, "-c", COMPARE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["same"] * 20, done.stdout + done.stderr


def test_a_run_verifies_every_bit_and_names_the_only_runtime(
    tmp_path: Path, made_environment: Callable[[str], None]
) -> None:
    made_environment("cortex-m")
    (tmp_path / "model.tflite").write_bytes(two_layers(few_values(SEVEN)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    report = optimize(recipe, out=tmp_path / "out", store=tmp_path / "store")
    coded = next(row for row in report.results if row.variant == "coded")
    assert coded.status == "ok", coded.reason
    assert any("compress_tflm has kept every bit of the outputs of the first 64" in n for n in coded.notes)
    assert coded.measurements["size_bytes"].value < 0.6 * (tmp_path / "model.tflite").stat().st_size
    (published,) = (row for row in publishable(report) if row.variant == "coded")
    make_bundle(tmp_path / "out", report, published, tmp_path / "bundle", name="coded", version="1")
    assert "AddDecode()" in (tmp_path / "bundle" / "firmware" / "op_resolver.h").read_text("utf-8")
    assert "a TFLM of October 2026" in (tmp_path / "bundle" / "firmware" / "README.md").read_text("utf-8")
    assert not (tmp_path / "bundle" / "example").exists()  # LiteRT cannot run it
    with pytest.raises(UsageError, match="only tflm runs what compress_tflm makes, and no device has it"):
        optimize(recipe, out=tmp_path / "no", store=tmp_path / "store", devices=["host"])


class Images(Dataset):
    """Smooth random images."""

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(4)
        for _ in range(48):
            yield Sample((np.cumsum(random.normal(size=IMAGE[1:]), axis=0).astype(np.float32),))

    def digest(self) -> str:
        return "images"


def coarsened(folder: Path, **options: object) -> tuple[Path, Path, list[str]]:
    """The toy with random weights, and coarsened; and the notes."""
    random = np.random.default_rng(0)
    full = [np.clip(random.laplace(0, 30, shape), -127, 127).astype(np.int8) for shape in SHAPES]
    before = folder / "before.tflite"
    before.write_bytes(two_layers(full, per_channel=True))
    signature = read_signature(before, "NHWC")
    model = Model(format="tflite", path=before, inputs=signature.inputs, outputs=signature.outputs)
    notes: list[str] = []
    context = Context(folder, Feed(Images(), Preprocessing()), print, note=notes.append)
    return before, CoarsenTflite.model_validate(options).run(model, context).path, notes


@pytest.mark.parametrize(("coding", "snr"), [("huffman", 13.5), ("tables", 9.5)])
def test_coarse_weights_take_as_many_bits_as_requested(coding: str, snr: float, tmp_path: Path) -> None:
    before, after, notes = coarsened(tmp_path, coding=coding, bits=3)
    assert float(notes[0].split()[4]) == pytest.approx(3, abs=0.06)
    samples = [(each.inputs[0][np.newaxis],) for each in Images().samples()]
    old, new = (outputs(file, samples).arrays[0] for file in (before, after))
    assert 10 * np.log10(np.mean(old**2) / np.mean((new - old) ** 2)) > snr
    layers = weight_coding.layers_of(graphs_of(load(after))[0])
    assert [layer.axis for layer in layers] == [None, 3]  # 288 depthwise weights stay as they are
    counts = [len(np.unique(layer.values)) for layer in layers]
    assert counts[0] == 8 if coding == "tables" else 8 < counts[0] < 40
    packed = weight_coding.packed(layers, CODINGS[coding])[0]
    assert packed is not None and len(packed.codes) == pytest.approx(4608 * 3 / 8, rel=0.03)


def test_a_pattern_that_leaves_nothing_to_coarsen(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no layer to coarsen has 512 weights or more") as raised:
        coarsened(tmp_path, keep=["conv_2d_0"])
    assert raised.value.fix == "shorten 'keep', or leave coarsen out"
    with pytest.raises(StageError, match="conv9"):
        coarsened(tmp_path, keep=["conv9"])


LIE = '''
from typing import ClassVar

from edgeopt.plugin import Stage


class Lie(Stage):
    """Changes a bias, and binds the result to a runtime as if that were lossless."""

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    runtimes: ClassVar[frozenset[str]] = frozenset({"litert"})
    bias: str

    def run(self, model, context):
        content, bias = model.path.read_bytes(), bytes.fromhex(self.bias)
        path = context.folder / "model.tflite"
        path.write_bytes(content.replace(bias, bytes(len(bias))))
        return model.model_copy(update={"path": path})
'''


def test_a_stage_that_changes_a_bit_fails_the_artifact(tmp_path: Path) -> None:
    content = two_layers(few_values(SEVEN))
    (tmp_path / "model.tflite").write_bytes(content)
    (tmp_path / "lies.py").write_text(LIE)
    layer = weight_coding.layers_of(graphs_of(parse(content, "toy"))[0])[0]
    bias = graphs_of(parse(content, "toy"))[0].operations[layer.operator].inputs[2]
    assert bias is not None
    recipe = tmp_path / "recipe.yaml"
    stage = f'{{uses: "lies:Lie", with: {{bias: "{bias.data[:16].hex()}"}}}}'
    recipe.write_text(RECIPE.replace("{uses: compress_tflm, with: {coding: huffman}}", stage))
    report = optimize(recipe, out=tmp_path / "out", store=tmp_path / "store", devices=["host"])
    coded = next(row for row in report.results if row.variant == "coded")
    assert (coded.status, report.exit_code) == ("failed", 3)
    assert coded.reason.endswith("has changed outputs: they must keep every bit")
