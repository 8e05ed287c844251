"""Search for the best variants of a recipe: selected on data of their own, judged on the evaluation data."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from edgeopt.commands.optimize import optimize
from edgeopt.commands.start import RECIPE, Given, is_model, paths_of, recipe_of
from edgeopt.config.files import write_text, writing
from edgeopt.config.yaml_source import read_yaml
from edgeopt.errors import UsageError
from edgeopt.recipe.planner import BASELINE
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.resolve import find_recipe, load_recipe
from edgeopt.recipe.searching import Search
from edgeopt.recipe.selection import Selection
from edgeopt.reports.searching import render
from edgeopt.results import LIMITS, Event, Report
from edgeopt.results.search import PAGE, RESULT, Judged, SearchResult, Tried
from edgeopt.run.executors.choice import executing
from edgeopt.run.store import ARTIFACTS, open_store, store_place
from edgeopt.search.journal import ELSEWHERE, one_at_a_time
from edgeopt.search.recipes import gates_of, recipe_text
from edgeopt.search.search import search as run_search

NAME = "best"
"""The variant that is searched if the recipe names none."""
SHOWN = 8
"""Most variants of the front that are built and judged."""

Watch = Callable[[Event], None]


class Found(NamedTuple):
    """The outcome of a search, the folder that it was written to, and the reports of the front, by format."""

    result: SearchResult
    folder: Path
    reports: Mapping[str, Report]

    @property
    def exit_code(self) -> int:
        """3 if something could not run, 1 if no variant meets the limits, or the best one fails its gates."""
        if any(report.exit_code == 3 for report in self.reports.values()):
            return 3
        best = self.result.best
        if best is None:
            return 1
        return 0 if all(each.passed for each in self.result.judged if each.trial == best.number) else 1


def search(
    recipe: str | Path,
    *,
    data: str | Path | Sequence[str | Path] = (),
    goal: str | None = None,
    factory: str | None = None,
    shapes: Sequence[Sequence[int]] = (),
    variant: str | None = None,
    under: Sequence[str] = (),
    minimize: Sequence[str] = (),
    over: Sequence[str] = (),
    trials: int | None = None,
    hours: float | None = None,
    batch: int | None = None,
    out: Path | None = None,
    store: str | Path | None = None,
    overrides: Sequence[str] = (),
    formats: Sequence[str] = (),
    devices: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
    on: str | None = None,
    watch: Watch = lambda event: None,
) -> Found:
    """Search for a variant of a recipe, and judge the Pareto front on the evaluation data.

    Args:
        recipe: a recipe file, the name of a shipped recipe, or a model, for which a recipe is written.
        data, goal, factory, shapes: for a model, as of `optimize`.
        variant: the variant with ``search``; default: the only one, or one called ``best``.
        under: limits such as ``top1 max_drop 0.01``, instead of those of the recipe.
        minimize: measurements to minimize, instead of those of the recipe.
        over: what varies, such as ``bits=[4, 8]``, instead of what the recipe says.
        trials: most candidates to try.
        hours: time limit.
        batch: candidates to propose and build together.
        out: folder of the journal and the results; default ``artifacts/searches/<recipe>-<variant>``.
        on: where stages run: ``local``, ``ray`` or ``ray:HOST:PORT``; default ``EDGEOPT_ON`` or ``local``.

    Raises:
        UsageError: the recipe, an option or the folder is invalid.
        CannotRunError: the source model or its float artifact cannot be built or run.
    """
    given = Given(
        Path(recipe),
        paths_of(data),
        goal=goal,
        factory=factory,
        shapes=shapes,
        int8=is_model(recipe),  # what a search starts from
        formats=formats,
        devices=devices,
        overrides=overrides,
        verb="search",
    )
    if is_model(recipe):
        path = _written(given, out, store, data_root, device_folders, watch)
        out, overrides = path.parent, ()
    else:
        given.demand_none_for_models()
        path = find_recipe(recipe)
    name = variant or _only_search(path)
    settings = [*overrides, *_settings(name, under, minimize, over, trials, hours, batch)]
    loaded = load_recipe(
        path,
        overrides=settings,
        data_root=data_root,
        device_folders=device_folders,
        selection=Selection(formats=tuple(formats), devices=tuple(devices)),
    )
    task = next((each.search for each in loaded.variants if each.name == name), None)
    if task is None:
        raise UsageError(
            f"{path}: the variant {name} is not searched", fix="give it 'search: {}', or choose another name"
        )
    folder = out or ARTIFACTS / "searches" / f"{loaded.name}-{name}"
    with executing(on, store_place(store), watch):
        result = run_search(loaded, name, task, folder, open_store(store), device_folders, watch)
    # Other processes of the same search have the same results.
    with one_at_a_time(folder):
        _write(result, folder)
        front = _shown(result)
        for title, tried in front.items():
            with writing(folder, ELSEWHERE):
                place = folder / "front"
                write_text(place / f"{title}.yaml", recipe_text(loaded, title, tried, task, place))
        reports = {
            target: optimize(
                path,
                out=folder / target,
                store=store,
                overrides=[*settings, *_only(loaded, task, _of_format(front, target))],
                formats=(target,),
                devices=devices,
                data_root=data_root,
                device_folders=device_folders,
                on=on,
                watch=watch,
            )
            for target in dict.fromkeys(each.format for each in front.values())
        }
        judged = [_judged(title, tried, reports[tried.format]) for title, tried in front.items()]
        result = result.model_copy(update={"judged": tuple(judged)})
        _write(result, folder)
    return Found(result, folder, reports)


def _written(
    given: Given,
    out: Path | None,
    store: str | Path | None,
    data_root: Path | None,
    device_folders: Sequence[Path],
    watch: Watch,
) -> Path:
    """The file of the recipe that is written for a model, in the folder of the search.

    Raises:
        UsageError: as `recipe_of`, or there are no samples to compare candidates on.
    """
    if not given.data:
        raise UsageError(
            "a search needs samples: candidates are calibrated and compared on them",
            fix=f"add them, arrays x and y or a folder of images: {given.command('--data', 'samples.npz')}",
        )
    ready = recipe_of(
        given,
        lambda name: out or ARTIFACTS / "searches" / f"{name}-{NAME}",
        store=lambda: open_store(store),
        data_root=data_root,
        device_folders=device_folders,
        watch=watch,
    )
    path = ready.folder / RECIPE
    with writing(path, ELSEWHERE):
        write_text(path, _with_validation(ready.text or ""))
    return path


def _with_validation(text: str) -> str:
    """A recipe that is written for a model, with half of its evaluation data to select on."""
    document = yaml.safe_load(text)
    data = document["data"]
    if "validation" in data or "evaluation" not in data:
        return text
    whole = data["evaluation"]
    for name, part in (("validation", "calibration"), ("evaluation", "evaluation")):
        # Copies: the file would have an alias for the second.
        options = {"of": copy.deepcopy(whole), "part": part, "share": 0.5}
        data[name] = {"uses": "split", "with": options}
    written: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
    return f"# Written by edgeopt search from a model file; half of the data to judge on selects.\n{written}"


def _only_search(path: Path) -> str:
    """The variant of a recipe that is searched; the usual name if there is none.

    Raises:
        UsageError: there are several.
    """
    data, _ = read_yaml(path.read_text("utf-8"), str(path))
    variants = data.get("optimize") if isinstance(data, dict) else None
    bodies = variants.items() if isinstance(variants, dict) else ()
    names = [str(name) for name, body in bodies if isinstance(body, dict) and "search" in body]
    if len(names) > 1:
        raise UsageError(f"{path} has several searches: {', '.join(names)}", fix=f"--variant {names[0]}")
    return names[0] if names else NAME


def _settings(
    name: str,
    under: Sequence[str],
    minimize: Sequence[str],
    over: Sequence[str],
    trials: int | None,
    hours: float | None,
    batch: int | None,
) -> list[str]:
    """The options of the command as settings of the recipe."""
    if wrong := next((each for each in over if "=" not in each), None):
        raise UsageError(f"--over {wrong!r} has no values", fix="write what varies, such as 'bits=[4, 8]'")
    place = f"optimize.{name}.search"
    settings = [f"{place}.under={json.dumps([_limit(each) for each in under])}"] if under else []
    settings += [f"{place}.minimize={json.dumps(list(minimize))}"] if minimize else []
    settings += [f"{place}.over.{each}" for each in over]
    settings += [f"{place}.budget.trials={trials}"] if trials is not None else []
    settings += [f"{place}.budget.hours={hours}"] if hours is not None else []
    settings += [f"{place}.budget.batch={batch}"] if batch is not None else []
    return settings or [f"{place}.seed=0"]


def _limit(text: str) -> dict[str, Any]:
    """A limit as words: ``top1 max_drop 0.01``, or ``arena_bytes max 60 KiB on cortex-m``.

    Raises:
        UsageError: it is not of this form.
    """
    words, _, device = text.partition(" on ")
    metric, kind, value = [*words.split(maxsplit=2), "", "", ""][:3]
    if kind not in LIMITS or not value:
        raise UsageError(
            f"--under {text!r} is not a limit",
            fix=f"write a metric, one of {', '.join(LIMITS)}, and a value: 'top1 max_drop 0.01'",
        )
    return {"metric": metric, kind: value} | ({"devices": [device.strip()]} if device else {})


def _shown(result: SearchResult) -> dict[str, Tried]:
    """The variants of the front to judge, by name: the best one, and of the others every n-th by size."""
    if not result.front:
        return {}
    best, *rest = result.front
    others = sorted(rest, key=lambda each: (*each.objectives.values(), each.number))
    step = max(1, -(-len(others) // (SHOWN - 1)))
    return {result.variant: best} | {
        f"{result.variant}-{number}": each for number, each in enumerate(others[::step], 2)
    }


def _of_format(front: Mapping[str, Tried], target: str) -> dict[str, Tried]:
    return {title: each for title, each in front.items() if each.format == target}


def _only(recipe: Recipe, task: Search, front: Mapping[str, Tried]) -> list[str]:
    """Settings of a recipe that leave only the variants of the front, with the limits as further gates."""
    variants: dict[str, Any] = {BASELINE: {}} | {title: each.options for title, each in front.items()}
    gates = yaml.safe_load(recipe.document).get("gates") or []
    known = {BASELINE, *front}
    kept = [gate for gate in gates if not (named := _variants(gate)) or known & set(named)]
    return [f"optimize={json.dumps(variants)}", f"gates={json.dumps([*kept, *gates_of(task, [*front])])}"]


def _variants(gate: Mapping[str, Any]) -> list[str]:
    """The variants that a gate names."""
    value = gate.get("variants", gate.get("variant", ()))
    return [value] if isinstance(value, str) else list(value)


def _judged(title: str, tried: Tried, report: Report) -> Judged:
    """The drops on the evaluation data beside those by which a variant was selected."""
    rows = [row for row in report.results if row.variant == title and row.format == tried.format]
    drops = {
        name: max(row.measurements[name].value for row in rows if name in row.measurements)
        for row in rows
        for name, value in row.measurements.items()
        if value.role == "drop" and name in tried.measurements
    }
    selection = {name: tried.measurements[name] for name in drops}
    return Judged(
        variant=title,
        trial=tried.number,
        format=tried.format,
        selection=selection,
        evaluation=drops,
        optimism={name: drops[name] - selection[name] for name in drops},
        passed=all(row.status == "ok" for row in rows)
        and not any(verdict.blocks for verdict in report.gates if verdict.variant == title),
    )


def _write(result: SearchResult, folder: Path) -> None:
    links = {each.variant: f"front/{each.variant}.yaml" for each in result.judged}
    links |= {each.format: f"{each.format}/report.html" for each in result.judged}
    with writing(folder, ELSEWHERE):
        write_text(folder / RESULT, result.model_dump_json(indent=1, by_alias=True) + "\n")
        write_text(folder / PAGE, render(result, links))
