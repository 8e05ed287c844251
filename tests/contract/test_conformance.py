"""The tests that every plug-in passes, ours like everybody's."""

import json
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from edgeopt.config import registry
from edgeopt.config.references import Code
from edgeopt.evaluation.datasets.coco import Coco
from edgeopt.evaluation.datasets.csv import Csv
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.evaluation.datasets.function import Function
from edgeopt.evaluation.datasets.image_folder import ImageFolder
from edgeopt.evaluation.datasets.mask_folder import MaskFolder
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.datasets.split import Split
from edgeopt.evaluation.datasets.wav_folder import WavFolder
from edgeopt.evaluation.datasets.yolo import Yolo
from edgeopt.evaluation.decoders.function import Function as FunctionDecoder
from edgeopt.evaluation.decoders.grid import Grid
from edgeopt.evaluation.decoders.ssd import Ssd
from edgeopt.evaluation.metrics._counts import Counts
from edgeopt.evaluation.metrics.function import Function as FunctionMetric
from edgeopt.evaluation.metrics.miou import Miou
from edgeopt.evaluation.metrics.pck import Pck
from edgeopt.evaluation.metrics.psnr import Psnr
from edgeopt.evaluation.metrics.ssim import Ssim
from edgeopt.evaluation.metrics.top1 import Top1
from edgeopt.evaluation.tasks.sequence import Sequence
from edgeopt.plugin import Contributions, Dataset, Sample, Stage
from edgeopt.recipe.document import Latency
from edgeopt.run.measuring.bench import Bench, timing_of
from edgeopt.run.store import Store
from edgeopt.stages.coarsen_tflite import CoarsenTflite
from edgeopt.stages.compress_tflm import CompressTflm
from edgeopt.stages.distill_tflite import DistillTflite
from edgeopt.stages.finetune_keras import FinetuneKeras
from edgeopt.stages.finetune_torch import FinetuneTorch
from edgeopt.stages.prune_keras import PruneKeras
from edgeopt.stages.prune_torch import PruneTorch
from edgeopt.stages.quantize_tflite import QuantizeTflite
from edgeopt.stages.quantize_weights_tflite import QuantizeWeightsTflite
from edgeopt.testing import Case, Nonconformance, Workshop, cases, null_device, toys
from edgeopt.testing.conformance.datasets import check_dataset
from edgeopt.testing.conformance.metrics import check_metric
from edgeopt.testing.conformance.stages import check_on, check_stage
from edgeopt.testing.conformance.tasks import check_decoder

pytestmark = pytest.mark.slow

INSTANCES = [
    FinetuneKeras(epochs=1),
    FinetuneTorch(epochs=1),
    *(kind(channels=0.5) for kind in (PruneKeras, PruneTorch)),
    *(kind(weights=0.5) for kind in (PruneKeras, PruneTorch)),
    Psnr(data_range=1),
    Ssim(data_range=1),
    Pck(reference=100),
    Sequence(decode="ctc"),
    Grid(strides=(8,)),
    Ssd(strides=(8,), scales=(0.2,), size=(64, 64)),
    *(QuantizeWeightsTflite(scheme=scheme) for scheme in ("float16", "dynamic_int8")),
]
ELSEWHERE = {
    ("metrics", "function"),  # needs a file, as datasets do: below
    ("decoders", "function"),
    ("stages", "coarsen_tflite"),  # need a quantized file: below
    ("stages", "compress_tflm"),
    ("stages", "distill_tflite"),
    ("runtimes", "null"),  # answers whatever it is given, which is what it is for
}
CODE = """
import numpy as np

def data():
    return [(np.full((4, 4, 1), index, np.float32), index % 3) for index in range(6)]

def first(outputs):
    return next(iter(outputs.values()))

def right(outputs, labels):
    return (outputs.argmax(axis=1) == labels).astype(float)
"""


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in cases("edgeopt", INSTANCES)
        if case.kind != "datasets" and (case.kind, case.name) not in ELSEWHERE
    ],
    ids=str,
)
def test_shipped_plugins(case: Case, workshop: Workshop) -> None:
    if reason := case.unavailable(workshop):
        pytest.skip(reason)
    case.check(workshop)


def test_stages_for_quantized_files(workshop: Workshop) -> None:
    quantized = workshop.run(QuantizeTflite(), workshop.model("tflite")).model
    check_on(CoarsenTflite(bits=4), quantized, workshop)
    coarse = workshop.run(CoarsenTflite(bits=4), quantized).model
    check_on(CompressTflm(), coarse, workshop)
    check_on(DistillTflite(epochs=1), coarse, workshop)


def _npz(folder: Path) -> Dataset:
    np.savez(folder / "data.npz", x=np.arange(48.0).reshape(3, 4, 4), y=np.arange(3))
    return Npz(path=folder / "data.npz")


def _split(folder: Path) -> Dataset:
    np.savez(folder / "data.npz", x=np.arange(48.0).reshape(12, 4), y=np.arange(12))
    return Split(of=Npz(path=folder / "data.npz"), part="evaluation")


def _csv(folder: Path) -> Dataset:
    for index in range(3):
        np.save(folder / f"{index}.npy", np.full((4, 4), index, np.float32))
    (folder / "data.csv").write_text("file,label\n0.npy,0\n1.npy,1\n2.npy,0\n")
    return Csv(path=folder / "data.csv")


def _image_folder(folder: Path) -> Dataset:
    from PIL import Image

    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(2):
            pixels = np.full((8, 8, 3), 40 * index + len(name), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{index}.png")
    return ImageFolder(path=folder / "images", size=(8, 8))


def _pictures(folder: Path) -> Path:
    from PIL import Image

    (folder / "images").mkdir()
    for index in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * index, np.uint8)).save(folder / "images" / f"{index}.png")
    return folder / "images"


def _coco(folder: Path) -> Dataset:
    images = _pictures(folder)
    boxes = [{"id": i, "image_id": i, "category_id": 5, "bbox": [1, 1, 2 + i, 3]} for i in range(3)]
    described = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    content = {"images": described, "annotations": boxes, "categories": [{"id": 5, "name": "cat"}]}
    (folder / "coco.json").write_text(json.dumps(content))
    return Coco(annotations=folder / "coco.json", images=images)


def _yolo(folder: Path) -> Dataset:
    images = _pictures(folder)
    (folder / "labels").mkdir()
    (folder / "labels" / "1.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    return Yolo(images=images)


def _mask_folder(folder: Path) -> Dataset:
    from PIL import Image

    images = _pictures(folder)
    (folder / "masks").mkdir()
    for index in range(3):
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(folder / "masks" / f"{index}.png")
    return MaskFolder(images=images, masks=folder / "masks")


def _wav_folder(folder: Path) -> Dataset:
    for name in ("go", "stop"):
        (folder / "sounds" / name).mkdir(parents=True)
        with wave.open(str(folder / "sounds" / name / "0.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 80, "NONE", ""))
            file.writeframes(np.full(80, len(name), "<i2").tobytes())
    return WavFolder(path=folder / "sounds")


def _function(folder: Path) -> Dataset:
    (folder / "own_data.py").write_text(CODE)
    return Function(function=Code.model_validate("own_data:data", context={"roots": (folder,)}))


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "csv": _csv,
    "digits": lambda folder: Digits(part="calibration"),
    "function": _function,
    "image_folder": _image_folder,
    "npz": _npz,
    "coco": _coco,
    "yolo": _yolo,
    "mask_folder": _mask_folder,
    "wav_folder": _wav_folder,
    "split": _split,
}


@pytest.mark.parametrize("name", registry.shipped("datasets"))
def test_shipped_datasets(name: str, workshop: Workshop, tmp_path: Path) -> None:
    check_dataset(DATASETS[name](tmp_path), workshop)


def test_a_metric_of_a_users_own(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "own_metric.py").write_text(CODE)
    function = Code.model_validate("own_metric:right", context={"roots": (tmp_path,)})
    check_metric(FunctionMetric(function=function), workshop)


def test_a_decoder_of_a_users_own(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "own_metric.py").write_text(CODE)
    function = Code.model_validate("own_metric:first", context={"roots": (tmp_path,)})
    check_decoder(FunctionDecoder(function=function), workshop)


def test_the_null_device_answers_at_once(workshop: Workshop, tmp_path: Path) -> None:
    bench = Bench(null_device(), workshop.bench.agent, Store(tmp_path)).open()
    model = workshop.model("tflite")
    outcome = bench.run(model, workshop.evaluation, latency=timing_of(Latency(min_runs=5, min_seconds=0)))
    assert not outcome.error and not outcome.outputs[0].any() and outcome.outputs[0].shape[1:] == (8, 8, 1)
    assert len(outcome.times["latency"]) >= 5


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        (toys.Elsewhere(), "writes outside its folder: .*cache.txt"),
        (toys.Random(), "writes different bytes in another process"),
        (toys.Blind(), r"declares the output shapes \[\(7,\)\], not \[\(10,\)\]"),
        (toys.Ruin(), "fulfils no intent, so it must preserve the outputs: .*broke the model"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_a_stage_does_wrong_is_found(stage: Stage, what: str, workshop: Workshop) -> None:
    with pytest.raises(Nonconformance, match=what):
        check_stage(stage, workshop)


def test_what_a_metric_does_wrong_is_found(workshop: Workshop) -> None:
    class Backwards(Top1):
        """Tells wrong outputs to be the better ones."""

        higher_is_better: ClassVar[bool] = False

    with pytest.raises(Nonconformance, match="correct outputs score 1, wrong ones"):
        check_metric(Backwards(), workshop)


def test_contributions_that_are_no_part_of_the_metric_are_found(workshop: Workshop) -> None:
    class Shuffled(Miou):
        """Credits the samples with the contributions of others."""

        def contributions(self, evidence: Counts, samples: int) -> Contributions:
            found = super().contributions(evidence, samples)
            return found._replace(values=np.roll(found.values, 1))

    class Shifted(Miou):
        """Credits every sample with too much."""

        def contributions(self, evidence: Counts, samples: int) -> Contributions:
            found = super().contributions(evidence, samples)
            return found._replace(values=found.values + 0.01)

    check_metric(Miou(), workshop)
    with pytest.raises(Nonconformance, match="do not explain its values for resampled sets"):
        check_metric(Shuffled(), workshop)
    with pytest.raises(Nonconformance, match=r"but the mean of its contributions is"):
        check_metric(Shifted(), workshop)


def test_what_a_dataset_does_wrong_is_found(workshop: Workshop) -> None:
    class Restless(Digits):
        """Gives other samples each time."""

        def samples(self) -> Iterator[Sample]:
            for sample in super().samples():
                yield sample._replace(inputs=(sample.inputs[0] + np.random.default_rng().integers(9),))

    with pytest.raises(Nonconformance, match=r"sample \d+ differs on the second pass"):
        check_dataset(Restless(part="calibration"), workshop)
