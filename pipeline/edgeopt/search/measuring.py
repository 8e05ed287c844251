"""Builds and measures candidates on the selection data.

Candidates with a common beginning share its steps in the store, and the workers of their stages stay open. An
artifact runs on few samples first: one that exceeds a limit on the drop with confidence is dropped then.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import HOST, load_device
from edgeopt.devices.lint import errors, lint_artifact, lint_measured, summary
from edgeopt.errors import CannotRunError, DeviceError, EdgeoptError, UsageError
from edgeopt.evaluation.hops import aligned, hop
from edgeopt.evaluation.interpreter import labels_of
from edgeopt.evaluation.judge import Evidence
from edgeopt.model import Model, Outputs
from edgeopt.plugin import Labels
from edgeopt.recipe.plan import Built
from edgeopt.recipe.planner import BASELINE, make_plan
from edgeopt.recipe.recipe import Recipe, Variant
from edgeopt.recipe.searching import OBJECTIVES, Search
from edgeopt.recipe.variants import variant_of
from edgeopt.results import MEASUREMENTS, Event, Result
from edgeopt.results.search import Tried
from edgeopt.run.assemble import result_of
from edgeopt.run.build import build
from edgeopt.run.executors.choice import executor_for
from edgeopt.run.measuring.bench import Bench, timing_of
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.readings import readings
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.preflight import runnable
from edgeopt.run.scoring import Scorer, scorer_of
from edgeopt.run.store import Store
from edgeopt.search.rows import SIZE, SNR, Row, Rows, clearly_over, noise_of
from edgeopt.search.selection import check_labels
from edgeopt.search.space import Candidate, Point

LOOKS = (64, 256, 1024, 4096)
"""Numbers of samples after which a candidate may be dropped, if the selection has at least twice as many."""
RISK = 0.05
"""Probability that a candidate within a limit is dropped early, all looks together (Bonferroni)."""


class Costs(NamedTuple):
    """What an artifact costs, as far as the host can tell."""

    noise: float
    """Error power of the outputs relative to their own."""
    size_bytes: float


class Measuring:
    """Measures candidates of a search. A context manager.

    Args:
        recipe: the recipe with the selection data as its evaluation data.
        search: limits and objectives.
        origin: where the selection data are from, for messages.
        store: cached steps and measurements.
        device_folders: folders with device files.
    """

    def __init__(
        self, recipe: Recipe, search: Search, origin: str, store: Store, device_folders: Sequence[Path]
    ) -> None:
        self.recipe = replace(recipe, variants=(Variant(BASELINE),), gates=())
        self.search = search
        self.store = store
        self.plan = make_plan(self.recipe)
        self.plan.demand_possible()
        self.labels = check_labels(self.plan, search, origin)
        self.rows = Rows(recipe, search, self.labels)
        self._timed = any(name in MEASUREMENTS and MEASUREMENTS[name].volatile for name in search.metrics)
        self._device_folders = device_folders
        self._cleanup = ExitStack()
        self.layers: dict[str, dict[str, int]] = {}
        """The number of weights of each layer of the float artifact, by format, the largest first."""
        self._scorers: dict[int, Scorer] = {}
        self._floats: dict[str, Model] = {}

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._cleanup = cleanup
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="edgeopt-")))
            self.executor = cleanup.enter_context(executor_for(self.recipe.limits.stage_memory))
            agent = build_agent(folder / "agent.pyz")
            devices = {device.name: device for device in self.recipe.devices}
            devices.setdefault(HOST, load_device(HOST, self._device_folders))
            trust = self.recipe.model.trust
            self.benches = {
                name: Bench(device, agent, self.store, trust).open() for name, device in devices.items()
            }
            self._check_devices()
            self.evaluation = Evaluation(self.recipe.evaluation, self.plan.preprocessing, folder)
            self._measure_float()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def tried(self, candidates: Mapping[int, tuple[Candidate, Point]]) -> Iterator[Tried]:
        """Build and measure candidates, by number; a failure of one is its own result.

        Raises:
            CannotRunError: a process, a machine, a device or the store was lost.
        """
        started = time.monotonic()
        builds = self._build({number: each for number, (each, _) in candidates.items()})
        # Built at once, so each has its share of the time.
        share = (time.monotonic() - started) / max(len(candidates), 1)
        for number, (candidate, point) in candidates.items():
            started = time.monotonic()
            known = {"number": number, "format": candidate.format, "options": candidate.options}
            tried = self._judged(builds[number], known | {"point": point})
            seconds = round(share + time.monotonic() - started, 3)
            yield tried.model_copy(update={"seconds": seconds})

    def costs(self, candidates: Sequence[Candidate], samples: int) -> list[Costs | None]:
        """What candidates cost on the host, on the first samples; None for one that cannot be built."""
        builds = self._build(dict(enumerate(candidates)))
        count = min(samples, self.samples)
        found: list[Costs | None] = []
        for number in range(len(candidates)):
            built = builds[number]
            if isinstance(built, str) or built.failure:  # a layer without a kernel for this precision
                found.append(None)
                continue
            measured = self._row(built, HOST, count).result.measurements
            known = SNR in measured
            found.append(Costs(noise_of(measured[SNR].value), measured[SIZE].value) if known else None)
        return found

    def _check_devices(self) -> None:
        """Refuse a device that is not there: every trial would fail on it.

        Raises:
            DeviceError: it cannot be used; the message says why.
        """
        for device in self.recipe.devices:
            failure = self.benches[device.name].failure
            if failure and device.name in self._used([device.name]):
                raise DeviceError(
                    f"the search measures on {device.name}, which cannot be used: {failure}",
                    fix=f"set it up, or choose another with --device: {HOST}",
                )

    def _check_objectives(self) -> None:
        """Refuse to minimize what no device of the search measures of the float artifacts.

        Raises:
            UsageError: names what is measured.
        """
        rows = [row.result for row in self.rows.floats if row.result.status == "ok"]
        if {row.device for row in rows} != {device.name for device in self.recipe.devices}:
            return  # a device for integers only
        measured = set().union(*(row.measurements for row in rows))
        for name in self.search.part.minimize:
            if name not in measured and not MEASUREMENTS[name].volatile:
                known = ", ".join(each for each in OBJECTIVES if each in measured)
                devices = ", ".join(dict.fromkeys(each.device for each in rows))
                raise UsageError(
                    f"{self.recipe.file}: {name} is not measured on {devices}",
                    fix=f"minimize one of {known}, or choose a device that measures it with --device",
                )

    def _used(self, names: Sequence[str]) -> list[str]:
        """Of these devices, those that the search measures on: all, unless a limit names some."""
        named = {name for gate in self.search.limits for name in gate.devices}
        return [name for name in names if not named or name in named]

    def _measure_float(self) -> None:
        """Run the source model, and measure the float artifacts, which ratios refer to."""
        host = self.benches[HOST]
        source = runnable(self.plan, self.store, host.device.runtimes, _quiet)
        outcome = host.run(source, self.evaluation) if source is not None else Outcome("", "it cannot be run")
        if outcome.error:
            raise CannotRunError(f"the source model cannot be run on {HOST}: {outcome.error}")
        self.source = Outputs(outcome.outputs, outcome.output_names)
        self.samples = outcome.samples
        for built in build(self.plan, self.store, _quiet, self.executor):
            if not built.complete:
                raise CannotRunError(f"{built.branch.name} cannot be built: {built.failure}")
            self._floats[built.branch.format] = self.plan.latest(built)
            sizes = built.steps[-1].breakdown if built.steps else None
            layers = sizes.layers if sizes is not None else ()
            self.layers[built.branch.format] = {each.name: each.size_bytes // 4 for each in layers}
            self.rows.floats += [self._row(built, name, self.samples) for name in self._devices(built)]
        self._check_objectives()

    def _build(self, candidates: Mapping[int, Candidate]) -> dict[int, Built | str]:
        """The built candidates by number, or why one cannot be produced.

        Raises:
            CannotRunError: one was lost; the others are in the store.
        """
        results: dict[int, Built | str] = {}
        variants: list[Variant] = []
        for number, candidate in candidates.items():
            try:
                variants.append(variant_of(self.recipe, f"trial{number}", candidate.options))
            except EdgeoptError as error:
                results[number] = error.message
        plan = make_plan(replace(self.recipe, variants=tuple(variants)))
        wanted = {(f"trial{number}", each.format): number for number, each in candidates.items()}
        for missing in plan.impossible:
            if (missing.variant, missing.format) in wanted:
                results[wanted[missing.variant, missing.format]] = f"{missing.reason}; {missing.fix}"
        chosen = [branch for branch in plan.branches if (branch.variant, branch.format) in wanted]
        plan = replace(plan, branches=tuple(chosen), impossible=())
        for built in build(plan, self.store, _quiet, self.executor):
            if built.lost:
                raise _lost(f"a candidate as {built.branch.format}", built.failure)
            results[wanted[built.branch.variant, built.branch.format]] = built
        return results

    def _judged(self, built: Built | str, known: dict[str, Any]) -> Tried:
        if isinstance(built, str) or not built.complete:
            reason = built if isinstance(built, str) else built.failure
            return Tried(**known, status="failed", reason=reason)
        looks = [count for count in LOOKS if 2 * count <= self.samples]
        devices = self._devices(built)
        for count in looks if any(gate.max_drop is not None for gate in self.search.limits) else ():
            # One device is enough to show a drop.
            row = self._row(built, devices[0], count)
            if reason := clearly_over(self.search.limits, row, 1 - RISK / len(looks)):
                return self.rows.tried([row], known, "stopped", reason, count)
        rows = [self._row(built, name, self.samples) for name in devices]
        return self.rows.tried(rows, known, "complete", "", self.samples)

    def _devices(self, built: Built) -> list[str]:
        """The devices to measure an artifact on; the host if none of the search can run it."""
        return self._used([device.name for device in built.branch.devices]) or [HOST]

    def _row(self, built: Built, device: str, count: int) -> Row:
        """Run an artifact on one device on the first samples, and score its outputs."""
        bench, model = self.benches[device], self.plan.latest(built)
        name = built.branch.variant
        about: dict[str, Any] = {"variant": name, "format": built.branch.format, "device": device}
        findings = errors(lint_artifact(model.path, bench.device, model.format))
        if findings:
            return Row(Result(**about, status="failed", reason="; ".join(summary(findings))), Evidence({}))
        whole = count == self.samples
        timed = self._timed and whole and name != BASELINE
        outcome = bench.run(
            model,
            self.evaluation,
            limit=None if whole else count,
            baseline=self._floats.get(model.format) if timed else None,
            latency=timing_of(self.recipe.latency) if timed else None,
        )
        if outcome.lost:
            raise _lost(f"a candidate as {built.branch.format} on {device}", outcome.error)
        exceeded = "; ".join(summary(lint_measured(outcome.measurements, bench.device)))
        outcome = outcome._replace(error=outcome.error or exceeded)
        arithmetic = built.steps[-1].arithmetic if built.steps else {}
        values = dict(readings(model, bench.device, outcome, arithmetic).values)
        if outcome.error or outcome.non_finite or not outcome.outputs:
            return Row(result_of(outcome, measurements=values, **about), Evidence({}))
        source = Outputs([array[:count] for array in self.source.arrays], self.source.names)
        scorer = self._scorer(count, source)
        outputs = aligned(Outputs(outcome.outputs, outcome.output_names), source)
        scores = scorer.artifact(outputs, source)
        compared = hop(
            built.branch.format,
            "",
            lossless=False,
            before=source,
            after=outputs,
            trained=any(step.stage.needs_training for step in built.steps),
            interpreters=scorer.interpreters,
        )
        labels = {named: labels_of(scorer.labels, head) for named, _, head in self.recipe.metrics}
        lower = frozenset(named for named, metric, _ in self.recipe.metrics if not metric.higher_is_better)
        evidence = Evidence(scores.pairs, labels, self.recipe.model.labels, lower)
        result = result_of(outcome, hops=(compared,), measurements=values | scores.values, **about)
        return Row(result, evidence)

    def _scorer(self, count: int, source: Outputs) -> Scorer:
        """The scorer for the first samples."""
        if count not in self._scorers:
            scorer = scorer_of(self.recipe, _first(self.labels, count))
            self._scorers[count] = self._cleanup.enter_context(scorer)
            scorer.source(source)
        return self._scorers[count]


def _first(labels: Labels | None, count: int) -> Labels | None:
    if isinstance(labels, Mapping):
        return {task: each[:count] for task, each in labels.items()}
    return None if labels is None else labels[:count]


def _lost(what: str, reason: str) -> CannotRunError:
    """A loss says nothing about the candidate: it must neither become a trial nor decide an allocation."""
    return CannotRunError(
        f"{what}: {reason}",
        fix="search again to go on: finished trials are kept. If a process is killed each time, set "
        "limits.stage_memory: what exceeds it is a failed trial",
    )


def _quiet(event: Event) -> None:
    """The steps of single candidates are not shown: there are hundreds."""
