"""Compares latency with a baseline by running its artifacts again, interleaved with those of a run.

Latencies of another day or host are not comparable. The baseline's files must still be in the store.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device
from edgeopt.errors import EdgeoptError
from edgeopt.evaluation.baseline import Baseline, Entry
from edgeopt.evaluation.regression import verdict_on
from edgeopt.formats.wire.bounded import json_value
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.recipe.document import Latency
from edgeopt.results import Measurement, Report, Result, Verdict
from edgeopt.run.measuring.bench import Bench, timing_of
from edgeopt.run.measuring.readings import latency
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.store import Store

GATE = "latency_ratio max {:g}"


class Rematch(NamedTuple):
    """The verdicts, and the reasons for artifacts without one."""

    verdicts: tuple[Verdict, ...]
    unjudged: tuple[str, ...]


def rematch(
    report: Report,
    run: Path,
    baseline: Baseline,
    store: Path,
    *,
    max_ratio: float,
    undecided: str = "fail",
    device_folders: Sequence[Path] = (),
) -> Rematch:
    """Run each artifact of ``run`` interleaved with the baseline's artifact of the same name, in one process.

    The gate fails if the 95 % confidence interval of the latency ratio is above ``max_ratio``, and passes if
    it is below.
    """
    old = {entry.key: entry for entry in baseline.entries if entry.digest}
    verdicts: list[Verdict] = []
    unjudged: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as name:
        runner = _Rematcher(Path(name), Store(store), device_folders)
        for row in report.results:
            entry = old.get((row.variant, row.format, row.device))
            if entry is None or row.status != "ok" or row.artifact is None:
                continue  # new and missing artifacts are judged by accuracy and size
            if "latency_p50_ms" not in row.measurements:
                continue  # an emulated device, or one that only compiles
            title = f"{row.variant}.{row.format} on {row.device}"
            if entry.digest == row.artifact.digest:
                gate = GATE.format(max_ratio)
                verdicts.append(verdict_on(entry, gate, "pass", 1.0, max_ratio, "the same file"))
                continue
            try:
                ratio = runner.ratio(row, run, entry)
            except EdgeoptError as error:
                unjudged.append(f"{title}: {error.message}")
                continue
            if ratio is None:
                unjudged.append(f"{title}: the baseline's file is no longer in the store")
                continue
            verdicts.append(_verdict(entry, ratio, max_ratio, undecided))
    return Rematch(tuple(verdicts), tuple(unjudged))


class _Rematcher:
    """Runs pairs of artifacts."""

    def __init__(self, folder: Path, store: Store, device_folders: Sequence[Path]) -> None:
        self.folder = folder
        self.agent = build_agent(folder / "agent.pyz")
        self.files = store.models()
        self.device_folders = device_folders
        self.evaluation = Evaluation(None, Preprocessing(), folder)

    def ratio(self, row: Result, run: Path, entry: Entry) -> Measurement | None:
        """Latency of the row's file divided by that of the entry's; None if the latter is not in the store.

        Raises:
            DeviceError, UsageError: a file cannot be run.
        """
        before = self.files.get(entry.digest)
        if before is None or row.artifact is None:
            return None
        path = run / row.artifact.path
        record: Mapping[str, object] = json_value(path.with_name(f"{path.name}.json").read_text("utf-8"))
        specs = [
            tuple(TensorSpec.model_validate(spec) for spec in record[end])  # type: ignore[attr-defined]
            for end in ("inputs", "outputs")
        ]
        model = Model(format=row.format, path=path, inputs=specs[0], outputs=specs[1])
        # An empty store: the user's store would return cached measurements.
        store = Store(self.folder / "store")
        bench = Bench(load_device(row.device, self.device_folders), self.agent, store).open()
        outcome = bench.run(
            model,
            self.evaluation,
            baseline=model.model_copy(update={"path": before}),
            latency=timing_of(Latency()),
        )
        if outcome.error:
            raise EdgeoptError(outcome.error)
        return latency(outcome).get("latency_ratio")


def _verdict(entry: Entry, ratio: Measurement, max_ratio: float, undecided: str) -> Verdict:
    low, high = ratio.ci95 or (ratio.value, ratio.value)
    status = "fail" if low > max_ratio else "pass" if high <= max_ratio else "undecided"
    reason = f"{ratio.value:.2f} x the latency of the baseline's file, interleaved ({low:.2f} to {high:.2f})"
    blocks = status == "fail" or (status == "undecided" and undecided == "fail")
    gate = GATE.format(max_ratio)
    return verdict_on(entry, gate, status, ratio.value, max_ratio, reason, blocks=blocks)
