"""Kills and signals at random moments of building, training, measuring, pushing and pulling.

    python benchmarks/kills.py [build train measure push pull] [--count 200] [--seed 0] [--minutes 600]

Each turn starts one of these commands and ends it with SIGKILL, SIGINT, SIGTERM or SIGHUP. Afterwards:

- the exit code is 130 after a signal, with one line of explanation and no traceback;
- no process of the command is left after 2 s;
- every store and library is sound, and what a command finished is identical to an undisturbed run;
- no temporary file is left: after a signal at once, after SIGKILL when the next command has run.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from edgeopt.config.files import file_digest  # noqa: E402
from edgeopt.run.store import Store  # noqa: E402

EDGEOPT = [sys.executable, "-m", "edgeopt"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MARK = "EDGEOPT_KILLS"
ORPHAN_SECONDS = 2.0
LINE = re.compile(r"interrupted; \d+ steps are kept, run the same command again\n")
RECIPE = """
version: 1
name: {name}
model:
  factory: "models.digits_cnn:digits_cnn"
  weights: digits.safetensors
  inputs: [{{name: image, shape: [1, 1, 8, 8], dtype: float32, layout: NCHW}}]
  preprocess: {{scale: 1/16, layout: NHWC}}
data:
  calibration: {{uses: digits, with: {{part: calibration, limit: 50}}}}
  evaluation: {{uses: digits, with: {{part: evaluation, limit: 100}}}}
  train: {{uses: digits, with: {{part: train, limit: 400}}}}
metric: top1
optimize: {variants}
formats: [onnx]
latency: {{min_runs: 20, min_seconds: 1}}
"""
VARIANTS = {
    "build": "{int8: {quantize: int8}, dynamic: {quantize: dynamic_int8}}",
    "train": "{slim: {prune: {channels: 0.5}, finetune: {epochs: 8}}}",
}

WRITTEN = {
    "build": ["store-build"],
    "train": ["store-train"],
    "measure": [],
    "push": ["remote", "shelf"],
    "pull": ["pulled", "board"],
}


class Command(NamedTuple):
    """A command, the arguments, and how long it takes undisturbed, in seconds."""

    name: str
    arguments: list[str]
    seconds: float


class Work:
    """The folders of the commands, and what an undisturbed run of each writes."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.faults: list[str] = []
        self.ended: collections.Counter[str] = collections.Counter()
        self.phases: collections.Counter[str] = collections.Counter()
        recipes = ROOT / "recipes"
        (folder / "models").symlink_to(recipes / "models")
        (folder / "digits.safetensors").symlink_to(recipes / "digits" / "digits.safetensors")
        for name, variants in VARIANTS.items():
            (folder / f"{name}.yaml").write_text(RECIPE.format(name=name, variants=variants))
        building = self.undisturbed("build", *self.optimize("build"))
        shutil.copytree(folder / "build", folder / "release")  # another run is another release
        pushing = self.undisturbed("push", *self.push("source", "maker"))  # pulled from there
        self.commands = [building, pushing._replace(arguments=self.push("remote", "shelf"))]
        if "train" in names:
            self.commands.append(self.undisturbed("train", *self.optimize("train")))
        if "measure" in names:
            self.commands.append(self.undisturbed("measure", "profile", "build/models/int8.onnx"))
        if "pull" in names:
            self.commands.append(self.undisturbed("pull", *self.pull("source", "board")))
        self.commands = [command for command in self.commands if command.name in names]
        self.expected = self.digests()

    def optimize(self, name: str) -> list[str]:
        return ["optimize", f"{name}.yaml", "--store", f"store-{name}", "--out", name]

    def push(self, remote: str, shelf: str) -> list[str]:
        release = f"file://{self.folder / remote}/digits:1.0"
        return ["artifacts", "push", "release", "--to", release, "--library", shelf]

    def pull(self, remote: str, shelf: str) -> list[str]:
        release = ["artifacts", "pull", f"file://{self.folder / remote}/digits:1.0", "--library", shelf]
        return [*release, "--variant", "int8", "--device", "host", "--out", "pulled"]

    def undisturbed(self, name: str, *arguments: str) -> Command:
        start = time.monotonic()
        process = self.start([*arguments])
        _, text = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"{name} does not run undisturbed: exit code {process.returncode}\n{text}")
        seconds = time.monotonic() - start
        print(f"{name}: {seconds:.1f} s undisturbed", flush=True)
        return Command(name, [*arguments], seconds)

    def start(self, arguments: list[str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*EDGEOPT, *arguments],
            cwd=self.folder,
            env=os.environ | {"TMPDIR": str(self.temporary), MARK: str(self.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def digests(self) -> dict[str, str]:
        files = [*self.folder.glob("*/models/*.onnx"), *self.folder.glob("pulled/*.onnx")]
        return {str(file.relative_to(self.folder)): file_digest(file) for file in files}

    def turn(self, command: Command, number: signal.Signals, delay: float) -> bool:
        """Start a command and end it; returns False if it ended before."""
        process = self.start(command.arguments)
        while process.poll() is None and not handles_signals(process.pid):
            time.sleep(0.005)
        time.sleep(delay)
        alive = process.poll() is None
        process.send_signal(number)
        at = time.monotonic()
        _, text = process.communicate()
        title = f"{command.name}, {number.name} after {delay:.2f} s"
        if not alive or process.returncode == 0:
            if process.returncode != 0:
                self.faults.append(f"{title}: exit code {process.returncode} undisturbed: {text[-300:]}")
            self.check(title, swept=True)
            return False
        self.ended[number.name] += 1
        self.phases[phase(command.name, text)] += 1
        print(f"{title}, in {phase(command.name, text)}", flush=True)
        if number != signal.SIGKILL and process.returncode != 130:
            self.faults.append(f"{title}: exit code {process.returncode}: {text[-300:]}")
        if number != signal.SIGKILL and (len(LINE.findall(text)) != 1 or "Traceback" in text):
            self.faults.append(f"{title}: {text[-300:]!r}")
        while (left := orphans(str(self.folder))) and time.monotonic() < at + ORPHAN_SECONDS:
            time.sleep(0.05)
        if left:
            self.faults.append(f"{title}: processes {left} are left")
        self.check(title, swept=number != signal.SIGKILL)
        return True

    def check(self, title: str, *, swept: bool) -> None:
        """Compare all stores and files with those of an undisturbed run."""
        for place in self.folder.glob("store-*"):
            if damaged := Store(place).damaged_keys():
                self.faults.append(f"{title}: damaged in {place.name}: {damaged}")
        digests = self.digests()
        different = [name for name, digest in digests.items() if digest != self.expected[name]]
        if different:
            self.faults.append(f"{title}: {different} differ")
        if swept and (litter := self.litter()):
            self.faults.append(f"{title}: left {litter}")

    def litter(self) -> list[str]:
        temporary = [*self.temporary.iterdir(), *self.folder.glob(".*"), *self.folder.glob("*/.edgeopt-*")]
        temporary += [*self.folder.glob("*/*/.edgeopt-*"), *self.folder.glob("*/scratch/*")]
        temporary += self.folder.glob("remote/*/scratch/*")
        return [str(path.relative_to(self.folder)) for path in temporary]


def handles_signals(process: int) -> bool:
    """Whether a process has installed its handlers: the interpreter itself takes some time to start."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGALRM - 1) & 1)


def phase(name: str, text: str) -> str:
    """What a command was doing, by its last line of progress."""
    if name in VARIANTS:
        steps = text.count("✓") + text.count("=   cached")
        return f"{name}, step {steps + 1}"
    return name


def orphans(mark: str) -> list[str]:
    """Living processes that were started by a command, directly or not."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
        except OSError:
            continue
    return found


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("commands", nargs="*", choices=[*WRITTEN, []])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600, help="stop earlier after this time")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    deadline = time.monotonic() + given.minutes * 60
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        work = Work(Path(name), given.commands or list(WRITTEN))
        fresh = {command.name for command in work.commands}
        while work.ended.total() < given.count and time.monotonic() < deadline:
            command = chance.choice(work.commands)
            if command.name in fresh or chance.random() < 0.2:
                fresh.discard(command.name)
                forget(work.folder, command.name)
            if not work.turn(command, chance.choice(SIGNALS), chance.uniform(0, command.seconds)):
                fresh.add(command.name)
        # The next runs: they resume, sweep, and end with the same files.
        for command in work.commands:
            work.undisturbed(command.name, *command.arguments)
        work.check("at the end", swept=True)
        if work.digests() != work.expected:
            work.faults.append("at the end: the files differ from those of an undisturbed run")
    print(json.dumps({"ended": work.ended, "in": dict(sorted(work.phases.items()))}, indent=1))
    for fault in work.faults:
        print(fault)
    print(f"{work.ended.total()} commands ended by a signal: {len(work.faults)} faults")
    return bool(work.faults)


def forget(folder: Path, name: str) -> None:
    """Remove what a command wrote, so that it does all its work again."""
    for place in WRITTEN[name]:
        shutil.rmtree(folder / place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
