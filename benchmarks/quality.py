"""Quality of the artifacts of real models: accuracy, agreement, SNR, bytes, MACs and latency.

    EDGEOPT_DATA=<folder> python benchmarks/quality.py [1 2 3 4 5 6 7] [--store FOLDER]

Without numbers, all seven parts are printed, as Markdown. Parts 4 and 5 train networks, which takes about two
hours on two cores; with a store that already contains them, the same numbers take a minute. Part 2 also
compares in tflite-runtime 2.14 after ``edgeopt devices setup host-tflite-runtime``. The figures of peers were
measured once, with their own defaults, on the same models.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import yaml

import edgeopt
from edgeopt.results import Event, Report, Result

ROOT = Path(__file__).resolve().parent.parent
FORMATS = "[tflite,onnx,torchscript,executorch]"


class Runs:
    """Runs recipes in one store, with progress on stderr."""

    def __init__(self, folder: Path, store: Path, without: Sequence[str] = ()) -> None:
        self.folder = folder
        self.store = store
        self.without = without
        self.seconds: dict[str, float] = {}

    def training(self, recipe: str) -> Report:
        """Run a shipped recipe with training, without the variants to be left out."""
        if not self.without:
            return self(recipe)
        variants = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())["optimize"]
        kept = {name: body for name, body in variants.items() if name not in self.without}
        return self(recipe, f"optimize={json.dumps(kept)}", "gates=[]")

    def __call__(self, recipe: str | Path, *overrides: str) -> Report:
        out = self.folder / f"{Path(recipe).stem}-{len(list(self.folder.iterdir()))}"
        report = edgeopt.optimize(recipe, out=out, store=self.store, overrides=overrides, watch=self._watch)
        if report.source is None or report.source.status != "ok":
            reason = "" if report.source is None else f": {report.source.reason}"
            raise SystemExit(f"{recipe}: the source model was not measured{reason}")
        return report

    def _watch(self, event: Event) -> None:
        if event.status in ("started", "cached"):
            return
        print(f"{event.branch} {event.step}: {event.status} {event.message}", file=sys.stderr, flush=True)
        if event.status == "done" and "finetune" in event.step:
            self.seconds[event.branch.partition(".")[0]] = event.seconds


def rows(report: Report, *variants: str) -> Iterator[Result]:
    """The results of the given variants; by default, of all except float."""
    for row in report.results:
        if row.variant in variants or (not variants and row.variant != "float"):
            yield row


def cell(row: Result, name: str, form: str = "{:.2f}", factor: float = 1.0) -> str:
    """One measurement, or the status of a result without measurements."""
    if row.status != "ok":
        return row.status
    value = row.measurements.get(name)
    return "–" if value is None else form.format(value.value * factor)


COLUMNS: dict[str, tuple[str, str, float]] = {
    "top-1 %": ("top1", "{:.2f}", 100),
    "drop pt": ("top1_drop", "{:+.2f}", 100),
    "agreement %": ("agreement", "{:.2f}", 100),
    "SNR dB": ("fidelity_snr_db", "{:.1f}", 1),
    "bytes": ("size_bytes", "{:,.0f}", 1),
    "gzip": ("gzip_bytes", "{:,.0f}", 1),
    "MACs": ("macs", "{:,.0f}", 1),
    "p50 ms": ("latency_p50_ms", "{:.3f}", 1),
    "÷ float": ("latency_ratio", "{:.2f}", 1),
}


def table(named: Sequence[tuple[str, Result]], *columns: str) -> None:
    """A Markdown table of measurements."""
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, row in named:
        print(f"| {name} | " + " | ".join(cell(row, *COLUMNS[column]) for column in columns) + " |")
    print()


def labelled(report: Report, *variants: str) -> list[tuple[str, Result]]:
    return [(f"{row.variant}.{row.format}", row) for row in rows(report, *variants)]


def printed(program: str, *arguments: str) -> str:
    """The output of another benchmark."""
    command = [sys.executable, str(ROOT / "benchmarks" / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


ACCURACY = ("top-1 %", "drop pt", "agreement %", "SNR dB", "bytes")


def keywords(run: Runs) -> None:
    """1. int8 of the keyword model in every format, and the smallest TFLite file"""
    print("Goal: at most 1.0 point below float, agreement 97 %; a TFLite file of at most 29,000 bytes.\n")
    report = run("mlperf-tiny-kws", f"formats={FORMATS}")
    small = run(
        "mlperf-tiny-kws",
        "formats=[tflite]",
        "optimize={per_tensor: {quantize: {scheme: int8, per_channel: false, io: int8}}}",
        "gates=[]",
    )
    table(labelled(report, "int8") + labelled(small, "per_tensor"), *ACCURACY)
    print(
        "Peers: TFLiteConverter per channel 48,480 B, per tensor 34,584 B; the published file 53,936 B and "
        "89.0 %;\nonnxruntime 1.32 per channel with its defaults, on AVX2 without VNNI, 1,000 samples: 8.5 %."
    )


def slimming(run: Runs) -> None:
    """2. Slimming the files that MLPerf Tiny publishes"""
    print(printed("slimming.py"))


def residual(run: Runs) -> None:
    """3. int8 of ResNet8 and ResNet20 in every format, and its speed on this CPU"""
    print(
        "Goal: at most 0.7 point below float; ResNet20 at least 25 dB; no format slower than its own float "
        "where a faster int8 form of equal accuracy exists.\n"
    )
    for recipe in ("mlperf-tiny-resnet8", "resnet20-cifar10"):
        print(f"{recipe}\n")
        table(labelled(run(recipe, f"formats={FORMATS}")), *ACCURACY, "p50 ms", "÷ float")
    print(
        "Peers on ResNet20: ai-edge-quantizer 0.10 with its default ranges 14.5 dB; onnxruntime U8S8 on AVX2 "
        "without VNNI 13.9 dB."
    )


def pruned(run: Runs) -> None:
    """4. Channel pruning with distillation, then int8; the control is fine-tuned alike but not pruned"""
    print(
        "Goal: ResNet20 45 % fewer MACs (22,303,072), latency 0.72, drop 1.5 points, int8 0.5 more; "
        "ResNet8 35 % fewer (8,126,060), drop 2 points.\n"
    )
    for recipe in ("resnet20-slim", "resnet8-slim"):
        report = run.training(recipe)
        print(f"{recipe}\n")
        named = labelled(report, "float", "control", "pruned", "slim")
        table(named, *ACCURACY, "gzip", "MACs", "p50 ms", "÷ float")
        trained = ", ".join(f"{name} {seconds / 60:.1f} min" for name, seconds in run.seconds.items())
        print(f"Training in this run: {trained or 'none, all from the store'}.\n")
        run.seconds.clear()
    print("Peer on ResNet20: torch-pruning 1.6.1 with two plain epochs loses 6.6 points at half the MACs.")


def quoted(run: Runs) -> None:
    """5. One variant at half the bytes of the best peer's int8 file: pruned, quantized, slimmed"""
    print("Goal: ResNet20 150,000 B within 1.5 points of the source; ResNet8 44,000 B within 2.5 points.\n")
    named = [
        (f"{recipe} {row.variant}.tflite", row)
        for recipe in ("resnet20-slim", "resnet8-slim")
        for variant in ("slim", "smallest")
        for row in rows(run.training(recipe), variant)
        if row.format == "tflite"
    ]
    table(named, *ACCURACY, "MACs", "p50 ms", "÷ float")
    print("Peers, int8: ResNet20 307,222 B (FX), 319,152 B (ai-edge-quantizer); ResNet8 95,568 B (TFLite).")


def searching(run: Runs) -> None:
    """6. Accuracy-aware: a hostile model kept within 0.5 points in at most 20 trials"""
    printed("hostile_model.py", str(run.folder))
    for scheme in (
        "{scheme: int8, per_channel: false}",
        "{scheme: int8, per_channel: false, max_drop: 0.005, budget: {trials: 20, minutes: 15}}",
    ):
        report = run(run.folder / "hostile.yaml", f"optimize={{int8: {{quantize: {scheme}}}}}")
        print(f"`quantize: {scheme}`\n")
        table(labelled(report), *ACCURACY)
        for row in rows(report):
            for note in row.notes:
                if "latency" not in note:  # this part prints no latencies
                    print(f"- {row.format}: {note}")
        print()


def memory(run: Runs) -> None:
    """7. Peak memory of calibration with 4,096 samples relative to 256"""
    print("Goal: at most 1.2.\n")
    print(f"```\n{printed('spine.py', 'memory')}\n```")


PARTS = {"1": keywords, "2": slimming, "3": residual, "4": pruned, "5": quoted, "6": searching, "7": memory}


def processor() -> str:
    """The name of the CPU and its instructions for 8-bit products."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in lines.items()}
    has = [flag for flag in ("avx2", "avx512_vnni", "avx_vnni") if flag in known.get("flags", "").split()]
    return f"{known.get('model name', platform.processor())} ({', '.join(has) or 'no AVX2'})"


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="1 to 7; all by default")
    parser.add_argument("--store", type=Path, help="store to use and keep; default: a temporary one")
    parser.add_argument(
        "--without", action="append", default=[], help="variant to leave out, such as control"
    )
    given = parser.parse_args()
    if not os.environ.get("EDGEOPT_DATA"):
        parser.error("set EDGEOPT_DATA to the folder of models and data")
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, {psutil.cpu_count()} cores, {platform.platform()}\n")
    with tempfile.TemporaryDirectory() as name:
        run = Runs(Path(name), given.store or Path(name, "store"), given.without)
        for part in given.parts or PARTS:
            print(f"## {PARTS[part].__doc__}\n")
            PARTS[part](run)
            print(flush=True)


if __name__ == "__main__":
    main()
