"""A search: from a space to its Pareto front, in batches of a fixed size, so that it can be repeated."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import yaml

from edgeopt.config import registry
from edgeopt.formats.known import model_digest
from edgeopt.plugin import Stage, digest_of
from edgeopt.recipe.plan import Plan
from edgeopt.recipe.planner import BASELINE, make_plan
from edgeopt.recipe.recipe import Recipe, Variant
from edgeopt.recipe.searching import Search, SearchBudget
from edgeopt.results import Event
from edgeopt.results.search import SearchResult, Tried
from edgeopt.run.keys import judging_code
from edgeopt.run.preflight import datasets_of, preflight
from edgeopt.run.store import Store
from edgeopt.search.front import nearest_to_limits, placed
from edgeopt.search.journal import Journal
from edgeopt.search.measuring import Measuring
from edgeopt.search.proposals import Proposals, require
from edgeopt.search.selection import selection_of
from edgeopt.search.sensitivities import sensitivities_of
from edgeopt.search.space import Space, space_of

WAIT = 0.5
"""Seconds between looks at the journal while other processes try the rest of a batch."""
START, LAYERS = "measure the source model and float", "measure the sensitivity of layers"
REVISION = 2
"""Raise it when the same search would measure its candidates differently."""

OTHER_PARTS = ("optimize", "gates", "ship", "limits", "target", "guessed")
"""Keys of a recipe on which the trials do not depend."""

Watch = Callable[[Event], None]
Status = Literal["started", "done"]


def search(
    recipe: Recipe,
    name: str,
    task: Search,
    folder: Path | None,
    store: Store,
    device_folders: Sequence[Path],
    watch: Watch,
) -> SearchResult:
    """Search for the variant ``name`` of a recipe; the journal in ``folder`` continues an interrupted search.

    Without a folder, the journal is in the store, one for each search. Several processes with one journal
    share its trials, and all return the same result.

    Raises:
        UsageError: the space, the selection data or the journal are unusable.
        CannotRunError: the source model or its float artifact cannot be built or run, or Optuna is missing.
    """
    require()
    floats = make_plan(replace(recipe, variants=(Variant(BASELINE),), gates=()))
    floats.demand_possible()
    space = space_of(recipe, name, task)
    selection = selection_of(recipe)
    preflight(floats, store, device_folders, watch)
    identity = digest_of(_identity(make_plan(selection.recipe), name, task, space))
    place = folder or store.root / "searches" / identity[:16]
    with Journal(place, identity, f"{name} of {recipe.name}") as journal:
        _emit(watch, START, "started")
        with Measuring(selection.recipe, task, selection.origin, store, device_folders) as measuring:
            _emit(watch, START, "done")
            _emit(watch, LAYERS, "started")
            known = sensitivities_of(measuring, space)
            _emit(watch, LAYERS, "done")
            proposals = Proposals(space, known, task.part.seed)
            stopped = _run(proposals, measuring, journal, task, watch)
            notes = _notes(recipe, measuring.samples, task)
        return SearchResult(
            recipe=recipe.name,
            variant=name,
            selection=selection.origin,
            samples=measuring.samples,
            limits=tuple(map(str, task.limits)),
            minimize=task.part.minimize,
            loss=measuring.rows.loss,
            dimensions={each.name: each.choices for each in space.dimensions},
            points=space.size,
            trials=placed(journal.trials),
            stopped=stopped,
            closest=_closest(journal.trials, task),
            notes=notes,
        )


def _run(proposals: Proposals, measuring: Measuring, journal: Journal, task: Search, watch: Watch) -> str:
    """Try candidates until the budget is used up or the space exhausted; returns the reason.

    Several processes may do so at once: each takes a part of the batch, and waits for its end.
    """
    budget, before, started = task.part.budget, journal.seconds, time.monotonic()
    while len(done := {each.number for each in journal.trials}) < budget.trials:
        if before + time.monotonic() - started > budget.hours * 3600:
            return f"the budget of {budget.hours:g} hours is used up"
        # An interrupted batch is proposed again, from the same trials, and only the rest of it is tried.
        first = (
            min(number for number in range(budget.trials) if number not in done)
            // budget.batch
            * budget.batch
        )
        batch = proposals.next([each for each in journal.trials if each.number < first], budget.batch)
        numbered = dict(enumerate(batch, first))
        left = {at for at in numbered if at not in done and at < budget.trials}
        if not left:
            return "every variant of the space has been tried"
        with journal.claimed(left) as mine:
            for tried in measuring.tried({at: numbered[at] for at in mine}) if mine else ():
                journal.add(tried)
                line = f"trial {tried.number + 1} of {budget.trials}: {_line(tried)}"
                watch(Event(branch="", step="", status="note", message=line))
        if not mine:
            time.sleep(WAIT)
    return f"the budget of {budget.trials} trials is used up"


def _line(tried: Tried) -> str:
    """One line about a trial."""
    if tried.status == "failed":
        return f"failed: {tried.reason.splitlines()[0]}"
    figures = ", ".join(f"{name} {value:,.6g}" for name, value in tried.objectives.items())
    over = ", ".join(name for name, value in tried.excess.items() if value > 1e-9)
    outcome = f"{tried.status}, over {over}" if over else tried.status
    return f"{outcome}: {figures} ({tried.format} {tried.options})"


def _closest(trials: Sequence[Tried], task: Search) -> str:
    """If no trial meets all limits: which one is closest, and by how much it exceeds which limits."""
    if any(each.holds for each in trials):
        return ""
    nearest = nearest_to_limits(trials, {str(gate): gate.limit[1] for gate in task.limits})
    if nearest is None:
        reasons = dict.fromkeys(each.reason.splitlines()[0] for each in trials)
        return f"no trial could be measured: {'; '.join(reasons)}"
    over = [f"{limit} by {value:.4g}" for limit, value in nearest.excess.items() if value > 1e-9]
    figures = ", ".join(f"{name} {value:,.6g}" for name, value in nearest.objectives.items())
    return f"trial {nearest.number + 1} is closest ({figures}), and exceeds {'; '.join(over)}"


def _notes(recipe: Recipe, samples: int, task: Search) -> tuple[str, ...]:
    """Limits that are finer than the selection data: a fraction of samples changes in steps of one."""
    stepwise = {name for name, metric, _ in recipe.metrics if metric.kind == "fraction" and not metric.of_set}
    return tuple(
        f"{gate}: of {samples} selection samples, one is already {1 / samples:.2%}; add data.validation"
        for gate in task.limits
        if gate.metric in stepwise and gate.max_drop is not None and gate.max_drop < 1 / samples
    )


def _identity(plan: Plan, name: str, task: Search, space: Space) -> dict[str, object]:
    """Everything that the trials depend on."""
    recipe = plan.recipe
    written = yaml.safe_load(recipe.document)
    stages = registry.plugins(Stage)
    return {
        "revision": REVISION,
        "recipe": {key: value for key, value in written.items() if key not in OTHER_PARTS},
        "variant": name,
        "model": [model_digest(plan.source), recipe.model.factory and recipe.model.factory.digest()],
        "data": {part: dataset.digest() for part, dataset in datasets_of(recipe).items()},
        "metrics": [[each.name, registry.code_digest(each.metric)] for each in recipe.metrics],
        **({"code": code} if (code := judging_code(recipe)) else {}),
        "limits": [str(gate) for gate in task.limits],
        "minimize": task.part.minimize,
        "seed": task.part.seed,
        **({"batch": batch} if (batch := task.part.budget.batch) != SearchBudget().batch else {}),
        "space": [list(each) for each in space.dimensions],
        "stages": {key: [stage.revision, stage.versions()] for key, stage in stages.items()},
    }


def _emit(watch: Watch, step: str, status: Status) -> None:
    watch(Event(branch="search", step=step, status=status))
