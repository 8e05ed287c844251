"""Measures every artifact on every device of its branch, and the source model on the host.

Starts after all builds have finished, but for the models of which nothing is timed: the source and those
between it and the artifacts run as soon as they are there, beside the stages. Different machines are measured
in parallel, each with one job at a time, and this one after all others, so that latencies are not disturbed.
"""

import tempfile
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeopt.config import registry
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import HOST, Device, load_device
from edgeopt.devices.lint import errors, lint_artifact, lint_measured, summary
from edgeopt.formats.known import model_digest
from edgeopt.model import Model
from edgeopt.plugin import Labels
from edgeopt.recipe.plan import Built, Plan, Step
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.measuring.bench import Bench, Untimed, timing_of
from edgeopt.run.measuring.beside import Beside
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.protocol import Probe
from edgeopt.run.measuring.queues import run_queues
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.preflight import check_labels
from edgeopt.run.store import Store

PROBE_SAMPLES = 64
"""Samples for comparing the steps between source model and artifact."""


class StepOutputs(NamedTuple):
    """Outputs after one step of a branch, on the first samples; hops are computed from them."""

    step: str
    produced: str
    lossless: bool
    outcome: Outcome
    trained: bool = False
    device: str = ""
    """Set if the step is the runtime of a device: it is part of that device's hops only."""


def judged_steps(built: Built, source: Model, host: Device) -> Iterator[tuple[Step, str, bool, bool]]:
    """The steps to compare individually: those that the host can run and that are not half-finished.

    Yields each with the names of all stages since the previous one, whether these claim to be lossless, and
    whether any of them trains.
    """
    since: list[Step] = []
    for number, step in enumerate(built.steps, 1):
        since.append(step)
        if step.model == source:
            since.clear()  # loading the source model changes nothing
            continue
        if step.model.format not in host.runtimes or not _runs(built.steps[:number], host):
            continue
        later = built.branch.stages[number:]
        if step.stage.needs_finetuning and any(stage.needs_training for stage in later):
            continue  # compared after the finetuning that it needs
        name = " + ".join(registry.plugin_name(each.stage) for each in since)
        lossless = not any(each.stage.fulfils for each in since)
        yield step, name, lossless, any(each.stage.needs_training for each in since)
        since = []


def _runs(steps: Sequence[Step], device: Device) -> bool:
    """Whether the device runs the result of the steps: some only have a runtime that others lack."""
    runtime = device.runtimes.get(steps[-1].model.format)
    return all(runtime in step.stage.runtimes for step in steps if step.stage.runtimes)


def measure_step(device: str) -> str:
    """Name of the measurement on a device in progress events."""
    return f"measure on {device}"


@dataclass
class Measured:
    """All outcomes: of the source model, per (branch, device), and per step."""

    source: Outcome
    source_model: Model
    labels: Labels | None
    samples: int
    finals: dict[tuple[str, str], Outcome]
    step_outputs: dict[str, tuple[StepOutputs, ...]]
    probes: dict[str, Probe]
    evaluation_digest: str
    random: bool
    """Whether the inputs are random: only lossless steps can be judged on them."""


def unmeasured(plan: Plan, reason: str) -> Measured:
    """The outcomes of a run whose samples cannot be read: nothing is measured."""
    return Measured(
        source=Outcome("", reason),
        source_model=plan.source,
        labels=None,
        samples=0,
        finals={},
        step_outputs={},
        probes={},
        evaluation_digest="",
        random=False,
    )


def build_and_measure(
    plan: Plan,
    store: Store,
    device_folders: Sequence[Path],
    watch: Callable[[Event], None],
) -> tuple[list[Built], Measured]:
    """Build every branch, and run the source model, every step and every artifact.

    Failures are returned: those of stages in the branches, those of runs as outcomes.

    Raises:
        UsageError: the evaluation data is unreadable or does not fit the model, or the labels its outputs.
        StoreError: the store is not writable.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as name:
        session = _Session(plan, store, Path(name), device_folders, watch)
        with session.beside:
            builds = build(plan, store, watch, progressed=session.begin)
            return builds, session.run(builds)


class _Session:
    """A measuring session: the devices' benches and the evaluation data."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        folder: Path,
        device_folders: Sequence[Path],
        watch: Callable[[Event], None],
    ) -> None:
        recipe = plan.recipe
        self.plan = plan
        self.watch = watch
        self.latency = timing_of(recipe.latency)
        # Without evaluation data, outputs can still be compared on calibration samples.
        self.evaluation = Evaluation(recipe.evaluation or recipe.calibration, plan.preprocessing, folder)
        agent = build_agent(folder / "agent.pyz")
        devices = {device.name: device for device in recipe.devices}
        # The source model and the intermediate steps always run on the host.
        devices.setdefault(HOST, load_device(HOST, device_folders))
        trust, code = recipe.model.trust, recipe.model.factory
        self.benches = {
            name: Bench(device, agent, store, trust, code=code) for name, device in devices.items()
        }
        self.machines = {name: bench.machine for name, bench in self.benches.items()}
        self.finals: dict[tuple[str, str], Outcome] = {}
        self._measured_on_host: dict[tuple[str, str], Outcome] = {}
        """Artifacts by digest and format."""
        self._seen: dict[Hashable, Outcome] = {}
        """The outcomes of models of which nothing is timed."""
        self._watching = threading.Lock()
        self._digests: dict[Path, str] = {}
        """Of models, which do not change: all are in the store, but the source."""
        self.beside = Beside(self.benches[HOST], self.evaluation)

    def begin(self, builds: Sequence[Built]) -> None:
        """Run what is there of the models of which nothing is timed, beside the stages that are left."""
        if not all(built.complete for built in builds):
            self.beside.add(self._untimed(builds, self._source_model(builds)))

    def run(self, builds: Sequence[Built]) -> Measured:
        """Measure all that was built, on all devices."""
        source = self._source_model(builds)
        run_queues(self._by_machine((name, bench.open) for name, bench in self.benches.items()))
        self._emit("source", HOST, "started")
        complete = [built for built in builds if built.complete]
        begun = self.beside.begun()
        late = {key: job for key, job in self._untimed(complete, source).items() if key not in begun}
        outcomes = self.benches[HOST].run_together([*late.values()], self.evaluation)
        self._seen = {
            key: job.result() for key, job in begun.items()
        }  # nothing runs on when others are timed
        self._seen |= zip(late, outcomes, strict=True)
        source_outcome = self._seen.get(self._key(Untimed(source))) or Outcome(
            "", next((b.failure for b in builds if b.failure), "it was not loaded")
        )  # a factory that failed
        self._emit("source", HOST, "failed" if source_outcome.error else "done", source_outcome.error)
        check_labels(self.plan.recipe, [values.shape for values in source_outcome.outputs])
        floats = {
            b.branch.format: self.plan.latest(b) for b in builds if b.branch.variant == "float" and b.complete
        }
        timed = [
            (device.name, partial(self._measure, built, device, floats.get(built.branch.format)))
            for built in complete
            for device in built.branch.devices
        ]
        run_queues(self._by_machine((name, job) for name, job in timed if self.machines[name]))
        step_outputs: dict[str, tuple[StepOutputs, ...]] = {}
        for built in complete:
            for device in built.branch.devices:
                if not self.machines[device.name]:
                    self._measure(built, device, floats.get(built.branch.format))
            step_outputs[built.branch.name] = self._step_outputs(built, source, source_outcome)
        has_labels = self.plan.recipe.evaluation is not None and not source_outcome.error
        labels = self.evaluation.labels(source.inputs) if has_labels else None
        return Measured(
            source=source_outcome,
            source_model=source,
            labels=labels,
            samples=source_outcome.samples,
            finals=self.finals,
            step_outputs=step_outputs,
            probes={name: bench.probe for name, bench in self.benches.items() if bench.probe is not None},
            evaluation_digest=self.evaluation.digest,
            random=self.evaluation.dataset is None,
        )

    def _by_machine(
        self, jobs: Iterable[tuple[str, Callable[[], object]]]
    ) -> list[list[Callable[[], object]]]:
        """Jobs, each with the name of its device, in a queue for each machine."""
        queues: dict[str, list[Callable[[], object]]] = {}
        for device, job in jobs:
            queues.setdefault(self.machines[device], []).append(job)
        return list(queues.values())

    def _measure(self, built: Built, device: Device, baseline: Model | None) -> None:
        """Run an artifact on a device, timed beside ``baseline`` unless it is that."""
        branch = built.branch
        self._emit(branch.name, device.name, "started")
        artifact = self.plan.latest(built)
        outcome = self._artifact(artifact, device, baseline if branch.variant != "float" else None)
        outcome = self._verified(built, device, outcome)
        status = "failed" if outcome.error else "cached" if outcome.cached else "done"
        self._emit(branch.name, device.name, status, outcome.error)
        self.finals[branch.name, device.name] = outcome
        if device.name == HOST and outcome.outputs and not outcome.error:
            self._measured_on_host[model_digest(artifact), artifact.format] = outcome

    def _artifact(self, artifact: Model, device: Device, baseline: Model | None) -> Outcome:
        """Run an artifact, unless lint finds errors, which then become the outcome's error."""
        runtime = device.runtimes[artifact.format]
        findings = lint_artifact(artifact.path, device, artifact.format)
        if errors(findings):
            return Outcome(runtime, f"not sent to {device.name}: {'; '.join(summary(errors(findings)))}")
        outcome = self.benches[device.name].run(
            artifact, self.evaluation, baseline=baseline, latency=self.latency
        )
        exceeded = summary(lint_measured(outcome.measurements, device))
        return outcome._replace(
            error=outcome.error or "; ".join(exceeded), extra_notes=tuple(summary(findings))
        )

    def _verified(self, built: Built, device: Device, outcome: Outcome) -> Outcome:
        """The outcome, failed unless a stage for one runtime has preserved every bit of the outputs there."""
        numbers = [number for number, stage in enumerate(built.branch.stages) if stage.runtimes]
        if not numbers or outcome.error or not outcome.outputs:
            return outcome
        name = built.branch.names[numbers[0]]
        before = built.steps[numbers[0] - 1].model if numbers[0] else self.plan.source
        plain = self.benches[device.name].run(before, self.evaluation, limit=PROBE_SAMPLES)
        if plain.error:
            reason = (
                f"{name} cannot be verified: {device.name} does not run the file before it: {plain.error}"
            )
            return outcome._replace(error=reason)
        count = len(plain.outputs[0])
        pairs = zip(plain.outputs, outcome.outputs, strict=True)
        if not all(np.array_equal(old, new[:count]) for old, new in pairs):
            return outcome._replace(error=f"{name} has changed outputs: they must keep every bit")
        note = f"{name} has kept every bit of the outputs of the first {count} samples on {device.name}"
        return outcome._replace(extra_notes=(*outcome.extra_notes, note))

    def _source_model(self, builds: Sequence[Built]) -> Model:
        """The original model: the given file, or the loaded model if the source is a factory and weights."""
        if self.plan.source.format in self.benches[HOST].device.runtimes:
            return self.plan.source
        for built in builds:
            if built.steps:
                return built.steps[0].model
        return self.plan.source

    def _step_outputs(self, built: Built, source: Model, source_outcome: Outcome) -> tuple[StepOutputs, ...]:
        """Outputs after every step of a branch that a runtime of the host supports."""
        host = self.benches[HOST]
        outputs = [StepOutputs("source", source.format, True, source_outcome)]
        for step, name, lossless, trained in judged_steps(built, source, host.device):
            model = step.model
            if step is not built.steps[-1]:
                outputs.append(StepOutputs(name, model.format, lossless, self._probed(model), trained))
                continue
            # From here on, the file is the same: the hops compare how runtimes execute it.
            exact = not any(stage.fulfils for stage in built.branch.stages)
            if (as_written := self._as_written(built)) is not None:
                outcome = self._seen[self._key(as_written)]
                outputs.append(StepOutputs(name, model.format, lossless, outcome, trained))
                name = ""
            for device in built.branch.devices:
                final = self.finals[built.branch.name, device.name]
                if not final.outputs and not final.error:
                    continue  # only compiled: no outputs to compare
                if name:
                    outputs.append(StepOutputs(name, model.format, lossless, final, trained))
                else:
                    title = f"runtime of {device.name}"
                    outputs.append(StepOutputs(title, model.format, exact, final, device=device.name))
                name = ""
        return tuple(outputs)

    def _probed(self, model: Model) -> Outcome:
        """The outputs of an intermediate model on the host, which may be the artifact of another branch."""
        measured = self._measured_on_host.get((model_digest(model), model.format))
        if measured is not None:
            return measured._replace(outputs=tuple(values[:PROBE_SAMPLES] for values in measured.outputs))
        probe = Untimed(model, PROBE_SAMPLES)
        return self._seen.get(self._key(probe)) or self.benches[HOST].run(
            model, self.evaluation, limit=PROBE_SAMPLES
        )

    def _untimed(self, builds: Sequence[Built], source: Model) -> dict[Hashable, Untimed]:
        """What is run besides the artifacts, as far as it is built: the source, the models between, and files
        as written; by what tells them apart."""
        host = self.benches[HOST].device
        here = (b for b in builds if b.complete and any(device.name == HOST for device in b.branch.devices))
        artifacts = {self._key(Untimed(self.plan.latest(built), PROBE_SAMPLES)) for built in here}
        # The source in the batch size of the artifacts: some layers depend on it.
        wanted = [Untimed(source)] if source.format in host.runtimes else []
        for built in builds:
            for step, *_ in judged_steps(built, source, host):
                if not (built.complete and step is built.steps[-1]):
                    wanted.append(Untimed(step.model, PROBE_SAMPLES))
                elif (as_written := self._as_written(built)) is not None:
                    wanted.append(as_written)
        return {key: job for job in wanted if (key := self._key(job)) not in artifacts}

    def _key(self, job: Untimed) -> Hashable:
        path = job.model.path
        if path not in self._digests:
            self._digests[path] = model_digest(job.model)
        return self._digests[path], job.model.format, job.limit, job.options is not None

    def _as_written(self, built: Built) -> Untimed | None:
        """A quantized artifact, to run without the changes of the runtime, if that makes some."""
        host, model = self.benches[HOST].device, self.plan.latest(built)
        reference = host.reference.get(host.runtimes[model.format])
        exact = not any(stage.fulfils for stage in built.branch.stages)
        return None if exact or reference is None else Untimed(model, PROBE_SAMPLES, reference)

    def _emit(self, branch: str, device: str, status: Any, message: str = "") -> None:
        with self._watching:
            self.watch(Event(branch=branch, step=measure_step(device), status=status, message=message))
