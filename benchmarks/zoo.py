"""Models of the mobile and edge field, every variant and format, beside the bare library calls.

    python benchmarks/zoo.py [--out FOLDER] [--only NAME...] [--small] [--again] [--table]
                             [--bare all|failed|none]

Each model of ``zoo/models.yaml`` is built with a seed, goes through ``edgeopt optimize`` and through the
libraries' own calls (``zoo/bare.py``), and every file is run by its runtime alone on the same samples: the
result is the signal-to-noise ratio of its worst output, with the framework's own as the reference
(``zoo/evaluate.py``). A cell is a model, a variant and a format. Verdicts:

    ok       the file exists and does what the report says
    refused  neither edgeopt nor the library makes a working file; the reason is printed
    LOST     the library makes a working file, and edgeopt does not
    SILENT   edgeopt reports a result as ok, and the file fails, is wrong, or is worse than reported
    LARGE    a float file is more than 3 % and 32 KiB larger than the ONNX file: it stores weights twice

The exit code is 1 if a cell is LOST, SILENT or LARGE. Results are kept by model in the folder; a repeated
command continues. The whole takes about an hour and a half on two cores. ``--table`` prints the results as
Markdown.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

PARTS = Path(__file__).resolve().parent / "zoo"
FORMATS = {"tflite": "tflite", "onnx": "onnx", "ptl": "torchscript", "pte": "executorch"}
"""The format of each suffix."""
WORKS = {"float": 40.0, "dynamic_int8": 10.0, "int8": 10.0}
"""The SNR in dB from which a file counts as working."""
LIMIT = 1200
"""Seconds for one process."""
BAD = ("LOST", "SILENT", "LARGE")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("artifacts/zoo"), help="folder of the results")
    parser.add_argument("--only", nargs="+", default=[], help="names of models")
    parser.add_argument("--small", action="store_true", help="only the models that the tests use")
    parser.add_argument("--again", action="store_true", help="run models again that have results")
    parser.add_argument(
        "--bare",
        choices=["all", "failed", "none"],
        default="all",
        help="library calls for all cells, for those that edgeopt does not do, or for none",
    )
    parser.add_argument("--table", action="store_true", help="print the results as Markdown; run nothing")
    given = parser.parse_args()
    catalogue = yaml.safe_load((PARTS / "models.yaml").read_text())
    if unknown := [name for name in given.only if name not in catalogue]:
        parser.error(f"no such model: {', '.join(unknown)}")
    names = given.only or [name for name, each in catalogue.items() if each.get("small") or not given.small]
    given.out.mkdir(parents=True, exist_ok=True)
    results = []
    for name in names:
        kept = given.out / f"{name}.json"
        if not given.table and (given.again or not kept.exists()):
            result = run(name, catalogue[name], given.out / "models" / name, given.bare)
            kept.write_text(json.dumps(result, indent=1))
            print("\n".join(lines(result)), flush=True)
        if kept.exists():
            results.append(json.loads(kept.read_text()))
    if given.table:
        print("\n".join(table(results)))
    counts = Counter(cell["verdict"] for result in results for cell in result["cells"].values())
    whole = sum(all(cell["verdict"] == "ok" for cell in result["cells"].values()) for result in results)
    shown = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    print(f"\n{len(results)} models, {whole} whole; {sum(counts.values())} cells: {shown}")
    return int(any(counts[verdict] for verdict in BAD))


def run(name: str, entry: dict[str, Any], folder: Path, bare: str) -> dict[str, Any]:
    """All cells of one model; its folder is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    framework = next(key for key in ("torch", "keras", "tf_keras") if key in entry)
    result: dict[str, Any] = {"name": name, "framework": framework, "seconds": {}, "cells": {}}
    variants = entry.get("variants", ["float", "int8"])
    cells = [f"{variant}.{suffix}" for variant in variants for suffix in FORMATS]
    made, seconds = process(PARTS / "prepare.py", folder.parent, name)
    result["seconds"]["prepare"] = seconds
    if made.returncode:
        raise SystemExit(f"{name}: {made.stderr[-2000:]}")
    rows, result["seconds"]["edgeopt"] = optimized(folder)
    found = evaluated(folder, "out/models", cells)
    for cell in cells:
        ours = dict(rows.get(cell) or rows.get("") or {"status": "failed", "reason": "no result"})
        ours.update(found.get(cell, {}))
        verdict = judged(cell.partition(".")[0], ours, {"error": "not run"})
        result["cells"][cell] = {"verdict": verdict, "edgeopt": ours, "bare": {"error": "not run"}}
    if bare != "none":
        missing = [cell for cell, row in result["cells"].items() if bare == "all" or row["verdict"] != "ok"]
        built, result["seconds"]["bare"] = library(folder, framework, missing)
        found = evaluated(folder, "bare", missing)
        for cell in missing:
            row = result["cells"][cell]
            row["bare"] = {**built.get(cell, {"error": "no way"}), **found.get(cell, {})}
            row["verdict"] = judged(cell.partition(".")[0], row["edgeopt"], row["bare"])
    onnx = result["cells"]["float.onnx"]["edgeopt"].get("bytes", float("inf"))
    for cell, row in result["cells"].items():
        large = row["edgeopt"].get("bytes", 0) > 1.03 * onnx + 32 * 1024
        if cell.startswith("float.") and row["verdict"] == "ok" and large:
            row["verdict"] = "LARGE"
    return result


def evaluated(folder: Path, side: str, cells: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Results of the runtimes, by cell."""
    files = [folder / side / cell for cell in cells]
    rows = collected("evaluate.py", folder / "evaluate.jsonl", [file for file in files if file.exists()])
    return {Path(file).name: row for file, row in rows.items()}


def judged(variant: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    works = WORKS[variant]
    bare = "error" not in theirs and theirs.get("snr", -999) >= works
    if ours["status"] != "ok":
        return "LOST" if bare else "refused"
    snr, reported = ours.get("snr", -999), ours.get("reported")
    if "error" in ours or snr < -900 or (variant == "float" and snr < works):
        return "SILENT"
    # Beyond 100 dB, samples and their order of summation matter.
    if reported is None or min(snr, 100) < min(reported, 100) - 3:
        return "SILENT"
    return "LOST" if snr < works and bare and theirs["snr"] > snr + 6 else "ok"


def optimized(folder: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """What edgeopt reports, by cell; under an empty name what applies to all if there is no report."""
    out = folder / "out"
    arguments = ("-m", "edgeopt", "optimize", folder / "recipe.yaml", "--keep-going", "--quiet")
    places = ("--out", out, "--store", folder / "store")
    # Of their own, as latencies are not of interest here: no wait for others that measure on this machine.
    done, seconds = process(*arguments, *places, EDGEOPT_HOME=str(folder / "home"))
    shutil.rmtree(folder / "store", ignore_errors=True)
    (folder / "edgeopt.log").write_text(done.stdout + done.stderr)
    if not (out / "report.json").exists():
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("error")), (lines or ["no message"])[-1])
        return {"": {"status": "failed", "reason": f"no report, exit {done.returncode}: {reason}"}}, seconds
    suffixes = {name: suffix for suffix, name in FORMATS.items()}
    rows = {}
    for row in json.loads((out / "report.json").read_text())["results"]:
        known = row["measurements"].get("fidelity_snr_db", {}).get("value")
        kept = {"status": row["status"], "reason": row["reason"], "reported": known and round(known, 1)}
        rows[f"{row['variant']}.{suffixes[row['format']]}"] = kept
    return rows, seconds


def library(folder: Path, framework: str, cells: Sequence[str]) -> tuple[dict[str, dict[str, Any]], float]:
    """What the libraries make, by cell."""
    started = time.monotonic()
    groups = [(cells, "")]
    if framework != "torch":
        on_torch = [cell for cell in cells if cell.endswith((".ptl", ".pte"))]
        groups = [([cell for cell in cells if cell not in on_torch], "tensorflow")]
        groups += [(on_torch, "torch")] if framework == "keras" else []
    found: dict[str, dict[str, Any]] = {}
    for group, backend in groups:
        variables = {"KERAS_BACKEND": backend} if backend else {}
        files = [folder / "bare" / cell for cell in group]
        found.update(collected("bare.py", folder / "bare.jsonl", files, **variables))
    return {Path(file).name: row for file, row in found.items()}, round(time.monotonic() - started, 1)


def collected(
    program: str, results: Path, files: Sequence[Path], **variables: str
) -> dict[str, dict[str, Any]]:
    """The rows that a program appends for each file; it is started again behind a file that ended it."""
    results.unlink(missing_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    left = list(files)
    while left:
        done, _ = process(PARTS / program, results, *left, **variables)
        for text in results.read_text().splitlines() if results.exists() else []:
            row = json.loads(text)
            rows[row["file"]] = row
        started = [file for file in left if str(file) in rows]
        if not started:
            raise SystemExit(f"{program}: {done.stderr[-2000:]}")
        last = str(started[-1])
        if "started" in rows[last]:
            ended = "time limit" if done.returncode == 124 else f"the process ended with {done.returncode}"
            rows[last] = {"file": last, "error": ended}
            with results.open("a") as stream:
                stream.write(json.dumps(rows[last]) + "\n")
        left = left[left.index(started[-1]) + 1 :]
    return rows


def process(*arguments: Any, **variables: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run Python, with a time limit: the exit code is then 124, as that of timeout(1)."""
    started = time.monotonic()
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore", **variables}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        written = str(error.stderr or b"", "utf-8", "replace")
        done = subprocess.CompletedProcess(command, 124, "", written)
    return done, round(time.monotonic() - started, 1)


def lines(result: dict[str, Any]) -> Iterator[str]:
    """One line per cell, for people who wait."""
    taken = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["seconds"].items())
    yield f"{result['name']} ({result['framework']}; {taken})"
    for cell, row in result["cells"].items():
        sides = [shown(row["edgeopt"]), shown(row["bare"])]
        yield f"  {row['verdict']:8} {cell:20} edgeopt {sides[0]:26} bare {sides[1]}"
        ours = row["edgeopt"]
        text = ours["reason"] or ours.get("error") or f"reported {ours.get('reported')} dB"
        if row["verdict"] != "ok":
            yield f"           {' '.join(text.split())[:300]}"


def shown(side: dict[str, Any]) -> str:
    if "snr" in side:
        note = f" ({side['note']})" if side["note"] else ""
        return f"{side['snr']:6.1f} dB {side['bytes']:>11,} B{note}"
    return side.get("error", side.get("status", "")).split("\n")[0][:80]


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """SNR in dB of edgeopt's files / those of the bare libraries, where these were run."""
    for variant in WORKS:
        rows = [result for result in results if f"{variant}.tflite" in result["cells"]]
        if not rows:
            continue
        yield f"### {variant}\n"
        yield "| model | " + " | ".join(FORMATS.values()) + " |"
        yield "|---|" + "---:|" * len(FORMATS)
        for result in rows:
            cells = [result["cells"][f"{variant}.{suffix}"] for suffix in FORMATS]
            yield f"| {result['name']} | " + " | ".join(map(entry_of, cells)) + " |"
        yield ""


def entry_of(cell: dict[str, Any]) -> str:
    def short(side: dict[str, Any]) -> str:
        return f"{side['snr']:.0f}" if side.get("snr", -999) > -900 else "–"

    mark = "" if cell["verdict"] == "ok" else f" {cell['verdict']}"
    bare = "" if cell["bare"].get("error") == "not run" else f" / {short(cell['bare'])}"
    return f"{short(cell['edgeopt'])}{bare}{mark}"


if __name__ == "__main__":
    sys.exit(main())
