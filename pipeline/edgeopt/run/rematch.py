"""The baseline's artifacts run once more, in turns with those of a run: the only way to compare latency.

A time of another day or another host says nothing here. The old file must still be in the store.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device
from edgeopt.errors import EdgeoptError
from edgeopt.evaluation.baseline import Baseline, Entry, verdict_on
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.recipe.document import Latency
from edgeopt.results import Measurement, Report, Result, Verdict
from edgeopt.run.bench import Bench, Evaluation, timing_of
from edgeopt.run.readings import latency
from edgeopt.run.store import Store

GATE = "latency_ratio max {:g}"


class Rematch(NamedTuple):
    """What came of it: verdicts, and why the others are none."""

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
    """Run each artifact of ``run`` and the baseline's one of the same name in turns, in one process.

    It fails where the interval of the ratio lies above ``max_ratio``, and passes where it lies below.
    """
    old = {entry.key: entry for entry in baseline.entries if entry.digest}
    verdicts: list[Verdict] = []
    unjudged: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as name:
        place = _Place(Path(name), Store(store), device_folders)
        for row in report.results:
            entry = old.get((row.variant, row.format, row.device))
            if entry is None or row.status != "ok" or row.artifact is None:
                continue  # accuracy and size have their say on what is new or missing
            if "latency_p50_ms" not in row.measurements:
                continue  # emulated, or a device that executes nothing
            title = f"{row.variant}.{row.format} on {row.device}"
            if entry.digest == row.artifact.digest:
                gate = GATE.format(max_ratio)
                verdicts.append(verdict_on(entry, gate, "pass", 1.0, max_ratio, "the same file"))
                continue
            try:
                found = place.ratio(row, run, entry)
            except EdgeoptError as error:
                unjudged.append(f"{title}: {error.message}")
                continue
            if found is None:
                unjudged.append(f"{title}: the baseline's file is no longer in the store")
                continue
            verdicts.append(_judged(entry, found, max_ratio, undecided))
    return Rematch(tuple(verdicts), tuple(unjudged))


class _Place:
    """What every match needs."""

    def __init__(self, folder: Path, store: Store, device_folders: Sequence[Path]) -> None:
        self.folder = folder
        self.agent = build_agent(folder / "agent.pyz")
        self.files = store.models()
        self.device_folders = device_folders
        self.evaluation = Evaluation(None, Preprocessing(), folder)

    def ratio(self, row: Result, run: Path, entry: Entry) -> Measurement | None:
        """The time of the row's file over that of the entry's; None if that is gone.

        Raises:
            DeviceError, UsageError: it cannot be run here.
        """
        before = self.files.get(entry.digest)
        if before is None or row.artifact is None:
            return None
        path = run / row.artifact.path
        record: Mapping[str, object] = json.loads(path.with_name(f"{path.name}.json").read_text("utf-8"))
        specs = [
            tuple(TensorSpec.model_validate(spec) for spec in record[end])  # type: ignore[attr-defined]
            for end in ("inputs", "outputs")
        ]
        model = Model(format=row.format, path=path, inputs=specs[0], outputs=specs[1])
        # Timed anew each time: the store would only repeat what was once measured.
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


def _judged(entry: Entry, found: Measurement, max_ratio: float, undecided: str) -> Verdict:
    low, high = found.ci95 or (found.value, found.value)
    status = "fail" if low > max_ratio else "pass" if high <= max_ratio else "undecided"
    reason = f"{found.value:.2f} x the time of the baseline's file, run in turns ({low:.2f} to {high:.2f})"
    blocks = status == "fail" or (status == "undecided" and undecided == "fail")
    gate = GATE.format(max_ratio)
    return verdict_on(entry, gate, status, found.value, max_ratio, reason, blocks=blocks)
