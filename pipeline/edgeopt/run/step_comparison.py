"""What every step of one variant did to the outputs, and what the steps are there for."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edgeopt.config import registry
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import HOST, load_device
from edgeopt.errors import StageError
from edgeopt.evaluation.diagnosis import Part
from edgeopt.evaluation.interpreter import UNDECIDABLE, Interpreter, interpreters
from edgeopt.evaluation.layer_statistics import Comparison
from edgeopt.model import Outputs
from edgeopt.recipe.plan import Built, Plan, Step
from edgeopt.recipe.recipe import Recipe
from edgeopt.results import Event, Hop
from edgeopt.run import assemble
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.measuring.session import PROBE_SAMPLES, StepOutputs, judged_steps
from edgeopt.run.store import Store

Watch = Callable[[Event], None]

PARTS: dict[str, Part] = {
    "prune": "compress",
    "cluster": "compress",
    "finetune": "train",
    "quantize": "quantize",
}
"""What the intents of a variant do to its model on purpose, as far as it decides the causes."""


def parts_of(steps: Sequence[Step]) -> dict[str, Part]:
    """What the stages of a variant do to the model, by their names."""
    return {
        registry.plugin_name(step.stage): PARTS[intent]
        for step in steps
        for intent in step.stage.fulfils
        if intent in PARTS
    }


def compare_whole(built: Built, hops: Sequence[Hop]) -> Comparison:
    """The comparison of whole models, for formats that hide their layers.

    Raises:
        StageError: the quantizing step could not be compared.
    """
    step = quantizing(built, hops)
    if step is None or step.snr_db is None:
        reason = step.reason if step is not None else "no step quantizes it"
        raise StageError(f"{built.branch.name} cannot be compared with its float model: {reason}")
    return Comparison(layers=(), samples=PROBE_SAMPLES, snr_db=step.snr_db, agreement=step.agreement)


def quantizing(built: Built, hops: Sequence[Hop]) -> Hop | None:
    """The step that quantizes the variant, compared with the previous one."""
    parts = parts_of(built.steps)
    quantize = [hop for hop in hops if any(parts.get(name) == "quantize" for name in hop.stage.split(" + "))]
    return quantize[-1] if quantize else None


def compare_steps(
    plan: Plan, built: Built, store: Store, device_folders: Sequence[Path], watch: Watch
) -> tuple[Hop, ...]:
    """Every step that the host can run, compared with the previous one on calibration data."""
    recipe = plan.recipe
    host = load_device(HOST, device_folders)
    name = built.branch.name
    watch(Event(branch=name, step="compare steps", status="started"))
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        folder = Path(scratch)
        evaluation = Evaluation(recipe.calibration or recipe.train, plan.preprocessing, folder)
        bench = Bench(host, build_agent(folder / "agent.pyz"), store, recipe.model.trust).open()
        run = partial(bench.run, evaluation=evaluation, limit=PROBE_SAMPLES)
        source = plan.source if plan.source.format in host.runtimes else built.steps[0].model
        first = run(source)
        step_outputs = [StepOutputs("source", source.format, True, first)]
        for step, names, lossless, trained in judged_steps(built, source, host):
            step_outputs.append(StepOutputs(names, step.model.format, lossless, run(step.model), trained))
        hops = assemble.hops_of(step_outputs, _interpreters(recipe, first))
    watch(Event(branch=name, step="compare steps", status="done"))
    return hops


def _interpreters(recipe: Recipe, source: Outcome) -> tuple[Interpreter, ...]:
    """What the outputs mean, as far as the recipe and the outputs of the source model say without labels."""
    outputs = Outputs(source.outputs, source.output_names)
    try:
        return interpreters(outputs, None, recipe.metrics, recipe.heads, recipe.decoder)
    except UNDECIDABLE:
        return ()
