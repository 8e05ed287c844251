"""Time, memory and accuracy of ``edgeopt optimize``: the related figures of the README.

    python benchmarks/spine.py                  # all parts
    python benchmarks/spine.py start overhead   # some

Parts: ``start`` (start-up time of the commands), ``digits`` (cold and cached runs of the shipped recipes),
``overhead`` (compared with the same library calls in one script), ``accuracy`` (real models, needs
EDGEOPT_DATA), ``memory`` (peak memory of calibration with 256 and with 4,096 samples).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EDGEOPT = [sys.executable, "-c", "from edgeopt.cli import main; main()"]
REAL = ("mlperf-tiny-kws", "mlperf-tiny-resnet8", "resnet20-cifar10")


def seconds(command: list[str], runs: int = 1, **environment: str) -> float:
    """Median wall time of a command in seconds; the command must succeed."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def start(folder: Path) -> None:
    print("command                          median s of 7   goal")
    for name, arguments, goal in (
        ("edgeopt --help", ["--help"], 0.2),
        ("edgeopt plan digits-keras", ["plan", "digits-keras"], 0.7),
        ("edgeopt plan digits-torch", ["plan", "digits-torch"], 0.7),
    ):
        median = seconds([*EDGEOPT, *arguments], 7, EDGEOPT_STORE=str(folder / "none"))
        print(f"{name:<32} {median:13.2f}   {goal}")


def digits(folder: Path) -> None:
    print("recipe         cold s   again s   goals 180 (both), 1.3")
    for recipe in ("digits-keras", "digits-torch"):
        run = [
            *EDGEOPT,
            "optimize",
            recipe,
            "--store",
            str(folder / recipe),
            "--out",
            str(folder / f"{recipe}-out"),
        ]
        cold = seconds(run)
        print(f"{recipe:<14} {cold:6.1f} {seconds(run, 3):9.2f}")


def overhead(folder: Path) -> None:
    """Building only, in a cold store, compared with a plain script that writes the same files."""
    print("recipe         formats                             edgeopt s   by hand s   ratio   goal 1.3")
    for recipe, formats, script in (
        ("digits-torch", "tflite,onnx,torchscript,executorch", "by_hand_torch.py"),
        ("digits-keras", "tflite,onnx", "by_hand_keras.py"),
    ):
        ours, theirs = [], []
        for index in range(3):  # interleaved, so that drift of the machine affects both
            arguments = [recipe, formats, str(folder / f"overhead-{recipe}-{index}")]
            ours.append(seconds([sys.executable, str(ROOT / "benchmarks" / "build_only.py"), *arguments]))
            out = folder / f"by-hand-{recipe}-{index}"
            out.mkdir()
            theirs.append(seconds([sys.executable, str(ROOT / "benchmarks" / script), str(out)]))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        middle = statistics.median(ours), statistics.median(theirs)
        print(f"{recipe:<14} {formats:<34} {middle[0]:10.1f} {middle[1]:11.1f} {ratio:7.2f}")


def accuracy(folder: Path) -> None:
    if not os.environ.get("EDGEOPT_DATA"):
        print("EDGEOPT_DATA is not set: skipped")
        return
    titles = ("top-1 %", "drop pt", "agree %", "SNR dB", "max error", "bytes", "p50 ms")
    print(f"{'model':<20} {'artifact':<18}" + "".join(f"{title:>10}" for title in titles))
    for recipe in REAL:
        out = folder / recipe
        subprocess.run(
            [*EDGEOPT, "optimize", recipe, "--store", str(folder / "real"), "--out", str(out), "-q"],
            check=False,
            capture_output=True,
        )
        for row in json.loads((out / "report.json").read_text())["results"]:
            name = f"{recipe:<20} {row['variant'] + '.' + row['format']:<18}"
            if row["status"] != "ok":
                print(f"{name} {row['status']}: {row['reason']}")
                continue
            value = {key: found["value"] for key, found in row["measurements"].items()}
            print(
                f"{name}{value['top1'] * 100:10.2f}{value['top1_drop'] * 100:+10.2f}"
                f"{value['agreement'] * 100:10.2f}"
                f"{value['fidelity_snr_db']:10.1f}{value['max_abs_error']:10.1e}{value['size_bytes']:10.0f}"
                f"{value['latency_p50_ms']:10.3f}"
            )


def memory(folder: Path) -> None:
    print("ResNet20 on 32x32 images   256 samples MB   4,096 samples MB   ratio   goal 1.2")
    program = str(ROOT / "benchmarks" / "calibration_peak.py")
    for stage in ("quantize_tflite", "quantize_onnx", "quantize_fx", "quantize_xnnpack"):
        peaks = []
        for count in ("256", "4096"):
            command = [sys.executable, program, stage, count, str(folder / "memory")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(float(done.stdout.splitlines()[-1]))
        print(f"{stage:<26} {peaks[0]:14.0f} {peaks[1]:18.0f} {peaks[1] / peaks[0]:7.2f}")


PARTS = {part.__name__: part for part in (start, digits, overhead, accuracy, memory)}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for part in sys.argv[1:] or PARTS:
            print(f"\n{part}")
            PARTS[part](Path(name))
