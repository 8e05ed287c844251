"""Time, memory and quality of a first run without a store, beside the same library calls in one script.

    python benchmarks/cold_build.py [mobilenet_v2 efficientnet_b0 vit_tiny] [--runs 2]

PyTorch networks for 224 x 224 pixels, exported to float and int8 TFLite and ONNX. edgeopt measures its files,
too; the script only makes them. Both run in turn; the ratio is that of the medians. The signal-to-noise
ratios compare the files in their runtimes with the network, on samples that calibrated nothing.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
NAMES = ("mobilenet_v2", "efficientnet_b0", "vit_tiny")
FILES = ("float.tflite", "float.onnx", "int8.tflite", "int8.onnx")
CALIBRATION, EVALUATION = 64, 32
RECIPE = """
version: 1
name: cold-{name}
model:
  factory: "cold_build:network"
  arguments: {{name: {name}}}
  weights: weights.safetensors
  inputs: [{{name: image, shape: [1, 3, 224, 224], dtype: float32, layout: NCHW}}]
data:
  calibration: {{uses: npz, with: {{path: calibration.npz}}}}
  evaluation: {{uses: npz, with: {{path: evaluation.npz}}}}
optimize: {{float: {{}}, int8: {{quantize: int8}}}}
formats: [tflite, onnx]
devices: [host]
latency: {{min_seconds: 0.2}}
"""

Images = NDArray[np.float32]


def network(name: str) -> Any:
    """An untrained network for 1,000 classes, ready for inference."""
    import torch

    sys.path.insert(0, str(HERE / "zoo"))
    vision = import_module("vision")  # beside this file, of the benchmark zoo.py

    torch.manual_seed(0)
    if name == "vit_tiny":
        import timm

        return timm.create_model("vit_tiny_patch16_224").eval()
    return getattr(vision.models, name)(weights=None).eval()


def images(count: int, seed: int) -> Images:
    """Smooth noise ``[count, 3, 224, 224]`` with a little grain."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, 3, 14, 14)).astype(np.float32).repeat(16, 2).repeat(16, 3)
    return coarse + 0.1 * random.standard_normal(coarse.shape, np.float32)


def prepare(name: str, folder: Path) -> None:
    """Weights with plausible statistics of the batch normalization, samples, and the network's outputs."""
    import torch
    from safetensors.torch import save_file

    model = network(name).train()
    with torch.no_grad():
        for seed in range(10):
            model(torch.from_numpy(images(8, 100 + seed)))
        model.eval()
        save_file(model.state_dict(), folder / "weights.safetensors")
        samples = images(EVALUATION, 1)
        np.save(folder / "expected.npy", np.concatenate([model(torch.from_numpy(x[None])) for x in samples]))
    np.savez(folder / "calibration.npz", x=images(CALIBRATION, 0))
    np.savez(folder / "evaluation.npz", x=samples)
    (folder / "recipe.yaml").write_text(RECIPE.format(name=name))


def bare(name: str, folder: Path) -> None:
    """The library calls, with their defaults except for weights per channel."""
    import ai_edge_quantizer
    import litert_torch
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from safetensors.torch import load_file

    out = folder / "bare"
    out.mkdir(exist_ok=True)
    model = network(name)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    with np.load(folder / "calibration.npz") as data:
        batches = [x[np.newaxis] for x in data["x"]]
    example = (torch.from_numpy(batches[0]),)

    class Batches(CalibrationDataReader):
        left = iter(batches)

        def get_next(self) -> dict[str, Images] | None:
            batch = next(self.left, None)
            return None if batch is None else {"image": batch}

    exported = torch.export.export(model, example)
    torch.onnx.export(
        exported, example, out / "float.onnx", dynamo=True, input_names=["image"], external_data=False
    )
    quant_pre_process(out / "float.onnx", out / "prepared.onnx")
    quantize_static(
        out / "prepared.onnx",
        out / "int8.onnx",
        Batches(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    last = (torch.from_numpy(np.ascontiguousarray(batches[0].transpose(0, 2, 3, 1))),)
    litert_torch.convert(litert_torch.to_channel_last_io(model, args=[0]), last).export(
        str(out / "float.tflite")
    )
    quantizer = ai_edge_quantizer.Quantizer(
        str(out / "float.tflite"), ai_edge_quantizer.recipe.static_wi8_ai8()
    )
    data = {"serving_default": [{"args_0": batch.transpose(0, 2, 3, 1)} for batch in batches]}
    quantizer.quantize(quantizer.calibrate(data)).export_model(str(out / "int8.tflite"), overwrite=True)


def snr_db(file: Path, samples: Images, expected: Images) -> float:
    """Signal-to-noise ratio of the outputs of a file to those of the network."""
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: x[np.newaxis]})[0] for x in samples]
    else:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(file))
        interpreter.allocate_tensors()
        (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
        last = given["shape"][-1] == samples.shape[1]
        found = []
        for x in samples[:, np.newaxis]:
            value = x.transpose(0, 2, 3, 1) if last else x
            scale, zero = given["quantization"]
            if scale:  # the script's file takes and gives 8-bit numbers
                value = np.clip(np.round(value / scale) + zero, -128, 127).astype(np.int8)
            interpreter.set_tensor(given["index"], value)
            interpreter.invoke()
            value, (scale, zero) = interpreter.get_tensor(made["index"]), made["quantization"]
            found.append((value.astype(np.float32) - zero) * scale if scale else value)
    noise = np.square(np.concatenate(found).astype(np.float64) - expected).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise))


class Cost(NamedTuple):
    """What one command took, with all of its processes."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of all cores."""
    peak: float
    """Largest memory of one of its processes in MiB."""


def cost(command: list[str], *, accepted: tuple[int, ...] = (0,)) -> Cost:
    """Run a command that has to end with an accepted exit code."""
    measured = (
        "import os, resource, subprocess, sys, time; start = time.perf_counter()\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "wall = time.perf_counter() - start; used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)\n"
        "sys.stderr.write(done.stderr); sys.exit(done.returncode)"
    )
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", measured, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode not in accepted:
        raise SystemExit(done.stderr[-3000:])
    return Cost(*map(float, done.stdout.split()))


def part(name: str, folder: Path, runs: int) -> None:
    """Measure one network and print its rows."""
    program = str(Path(__file__).resolve())
    subprocess.run([sys.executable, program, "--prepare", name, str(folder)], check=True)
    recipe, out = str(folder / "recipe.yaml"), str(folder / "out")
    ours, theirs = [], []
    for run in range(runs):
        theirs.append(cost([sys.executable, program, "--bare", name, str(folder)]))
        places = ("--out", out, "--store", str(folder / f"store-{run}"))
        command = [sys.executable, "-m", "edgeopt", "optimize", recipe, *places]
        # 3: the decisions of an untrained network do not survive 8 bits, and its files are called broken.
        ours.append(cost(command, accepted=(0, 3)))
    with np.load(folder / "evaluation.npz") as data:
        samples = data["x"]
    expected = np.load(folder / "expected.npy")
    medians = []
    for title, costs, files in (
        ("script", theirs, folder / "bare"),
        ("edgeopt", ours, folder / "out" / "models"),
    ):
        medians.append([statistics.median(column) for column in zip(*costs, strict=True)])
        figures = "{:.1f} | {:.1f} | {:,.0f} | ".format(*medians[-1])
        figures += " | ".join(
            f"{snr_db(files / file, samples, expected):.1f} dB, {(files / file).stat().st_size:,} B"
            for file in FILES
        )
        print(f"| {name} | {title} | {figures} |", flush=True)
    ratios = " | ".join(f"{our / their:.2f}" for their, our in zip(*medians, strict=True))
    print(f"| {name} | ratio | {ratios} |" + " |" * len(FILES), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, help="networks; default: all")
    parser.add_argument("--runs", type=int, default=2, help="runs of each")
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare or given.bare:
        name, place = given.prepare or given.bare
        (prepare if given.prepare else bare)(name, Path(place))
        sys.exit()
    print("| network | | wall s | CPU s | peak MiB |" + "".join(f" {file} |" for file in FILES))
    print("|---|---|---:|---:|---:|" + "---:|" * len(FILES))
    for name in given.names:
        with tempfile.TemporaryDirectory() as temporary:
            part(name, Path(temporary), given.runs)
