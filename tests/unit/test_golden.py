"""Golden vectors of a run: evenly spaced, in the dtypes of the file, exact."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeopt.evaluation.golden import COUNT, Golden
from edgeopt.evaluation.samples import dequantize, quantize, random_inputs
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Dataset, Sample

IMAGE = TensorSpec(name="image", shape=(1, 2, 2, 3), dtype="int8", layout="NHWC", scale=0.02, zero_point=-5)
SCORES = TensorSpec(name="scores", shape=(1, 4), dtype="int8", scale=1 / 256, zero_point=-128)


class Pixels(Dataset):
    count: int = 100

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(2)
        for index in range(self.count):
            yield Sample((random.integers(0, 256, (3, 2, 2), np.uint8),), index % 4)

    def digest(self) -> str:
        return f"pixels {self.count}"


def written(golden: Golden, model: Model, outputs: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    golden.write(model, [outputs], path)
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def test_they_are_in_the_types_and_layouts_of_the_file(tmp_path: Path) -> None:
    how = Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.25,), layout="NCHW")
    integers = np.random.default_rng(0).integers(-128, 128, (100, 4)).astype(np.int8)
    golden = Golden(Pixels(), how, np.arange(100) % 4, 100)
    model = Model(format="tflite", path=tmp_path / "m.tflite", inputs=(IMAGE,), outputs=(SCORES,))
    found = written(golden, model, dequantize(integers, SCORES), tmp_path / "golden" / "a.npz")
    rows = [0, 14, 28, 42, 57, 71, 85, 99]
    assert len(rows) == COUNT
    assert (found["output_0"] == integers[rows]).all() and found["output_0"].dtype == np.int8
    assert (found["label"] == np.array(rows) % 4).all()
    raw = [sample.inputs[0] for index, sample in enumerate(Pixels().samples()) if index in rows]
    assert (found["raw_0"] == np.stack(raw)).all() and found["raw_0"].shape == (8, 3, 2, 2)
    real = (found["raw_0"].astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.25)
    assert (found["input_0"] == quantize(real.transpose(0, 2, 3, 1), IMAGE)).all()
    assert sorted(found) == ["input_0", "label", "output_0", "raw_0"]


def test_without_data_they_are_what_the_run_made_up(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", shape=(1, 5))
    model = Model(format="onnx", path=tmp_path / "m.onnx", inputs=(spec,))
    outputs = np.ones((64, 3), np.float32)
    found = written(Golden(None, Preprocessing(), None, 64), model, outputs, tmp_path / "b.npz")
    assert (found["input_0"] == random_inputs([spec], 64)[0][[0, 9, 18, 27, 36, 45, 54, 63]]).all()
    assert sorted(found) == ["input_0", "output_0"]


def test_few_samples_are_all_kept_and_none_is_no_file(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", shape=(1, 5))
    model = Model(format="onnx", path=tmp_path / "m.onnx", inputs=(spec,))
    found = written(Golden(None, Preprocessing(), None, 3), model, np.eye(3), tmp_path / "c.npz")
    assert (found["output_0"] == np.eye(3)).all()
    Golden(Pixels(), Preprocessing(), None, 0).write(model, [np.eye(3)], tmp_path / "d.npz")
    assert not (tmp_path / "d.npz").exists()
