"""The verdict on a run: its gates, the comparison with a baseline, and its texts for a pull request."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from edgeopt.config.files import write_text, writing
from edgeopt.config.nearest import nearest
from edgeopt.errors import EdgeoptError, RecipeError, UsageError, shortened
from edgeopt.evaluation.baseline import Baseline
from edgeopt.evaluation.judgement import Judgement, key_of
from edgeopt.evaluation.regression import Limits, changes
from edgeopt.recipe.planner import BASELINE
from edgeopt.recipe.resolve import find_recipe
from edgeopt.recipe.selection import Selection
from edgeopt.reports import junit, markdown
from edgeopt.reports.ci import code_quality, comment
from edgeopt.reports.ci.annotations import Annotation, annotations, of_failure
from edgeopt.results import Recommendation, Report, Result, Verdict
from edgeopt.run.artifacts import OTHER_FOLDER
from edgeopt.run.rematch import rematch
from edgeopt.run.store import store_folder

COMMENT, CHECK, QUALITY, OUTPUTS = "comment.md", "check.xml", "code-quality.json", "ci.env"
"""Files that CI systems read, beside the report."""
OPTIONS = ("variant", "format", "device")
"""The options that narrow a run, in the order of a key."""
MAX_NAME = 100
"""Characters of the name under which a CI system keeps the folder."""


def judge(
    report: Report,
    baseline: Baseline | None,
    limits: Limits,
    *,
    run: Path,
    with_gates: bool = False,
    max_latency_ratio: float | None = None,
    store: Path | None = None,
    device_folders: Sequence[Path] = (),
) -> tuple[Judgement, tuple[str, ...]]:
    """Compare a run with a baseline, if there is one; return why latencies could not be judged as well.

    Raises:
        UsageError: run and baseline belong to different recipes, or were evaluated on different samples.
    """
    gates = report.gates if with_gates else ()
    if baseline is None:
        return Judgement(report, gates), ()
    judgement = Judgement(report, gates, tuple(changes(report, baseline, limits)))
    # The baseline says that these are unavailable: committing it accepted what the gates say of them.
    gates = tuple(gate for gate in gates if key_of(gate) not in judgement.known_missing)
    judgement = replace(judgement, gates=gates)
    if max_latency_ratio is None:
        return judgement, ()
    again = rematch(
        report,
        run,
        baseline,
        store_folder(store),
        max_ratio=max_latency_ratio,
        undecided=limits.undecided,
        device_folders=device_folders,
    )
    return replace(judgement, latency=again.verdicts), again.unjudged


def parts_of(reports: Sequence[Report], selection: Selection) -> list[Report]:
    """The parts of several runs that would remain of their recipe.

    Raises:
        UsageError: none of the runs has something of a name.
    """
    _check_names([key_of(row) for report in reports for row in report.results], selection)
    return [_part_of(report, selection) for report in reports]


def part_of(report: Report, selection: Selection, *, with_float: bool = True) -> Report:
    """The part of a finished run that would remain of its recipe; float does, if ``with_float``.

    Raises:
        UsageError: the run has none of a name.
    """
    _check_names([key_of(row) for row in report.results], selection)
    return _part_of(report, selection, with_float=with_float)


def _check_names(keys: Sequence[tuple[str, str, str]], selection: Selection) -> None:
    for at, (option, names) in enumerate(zip(OPTIONS, selection, strict=True)):
        known = dict.fromkeys(key[at] for key in keys)
        for name in names:
            if name not in known:
                raise UsageError(f"--{option} {name}: the run has no such {option}{nearest(name, known)}")


def _part_of(report: Report, selection: Selection, *, with_float: bool = True) -> Report:
    keys = [key_of(row) for row in report.results]

    def is_part(one: Result | Recommendation | Verdict) -> bool:
        return _selected(key_of(one), selection, with_float=with_float)

    return report.model_copy(
        update={
            "results": tuple(filter(is_part, report.results)),
            "recommended": tuple(filter(is_part, report.recommended)),
            # A gate that found nothing to judge concerns every part.
            "gates": tuple(one for one in report.gates if is_part(one) or key_of(one) not in keys),
        }
    )


def comparable(baseline: Baseline, selection: Selection) -> Baseline:
    """The part of a baseline that a narrowed run is compared with.

    Raises:
        UsageError: there is none.
    """
    entries = tuple(entry for entry in baseline.entries if _selected(entry.key, selection))
    if not entries:
        asked = [
            f"--{option} {name}" for option, names in zip(OPTIONS, selection, strict=True) for name in names
        ]
        known = [f"{entry.variant}.{entry.format} on {entry.device}" for entry in baseline.entries]
        raise UsageError(
            f"the baseline has nothing for {' '.join(asked)}; it has {shortened(', '.join(known), 300)}",
            fix="name something that it has, or write it from a run that has all: edgeopt baseline write RUN",
        )
    return baseline.model_copy(update={"entries": entries})


def updated(baseline: Baseline | None, fresh: Baseline, selection: Selection) -> Baseline:
    """The baseline after an update by a run, which leaves alone what a narrowed run has not built.

    Raises:
        UsageError: what changed since the baseline was written concerns the other artifacts, too.
    """
    if baseline is None or not any(selection):
        return fresh
    fixed = {
        "the recipe": (baseline.recipe, fresh.recipe),
        "the evaluation data": (baseline.evaluation_digest, fresh.evaluation_digest),
        "how files are judged": (baseline.judging, fresh.judging),
    }
    if changed := [what for what, (before, after) in fixed.items() if before != after]:
        narrowed = " ".join(f"--{option}" for option, names in zip(OPTIONS, selection, strict=True) if names)
        raise UsageError(
            f"a part of the baseline cannot be updated: {' and '.join(changed)} changed since it was "
            "written, for every artifact",
            fix=f"update it as a whole, without {narrowed}",
        )
    entries = {entry.key: entry for entry in baseline.entries if not _selected(entry.key, selection)}
    places = [entry.key for entry in (*baseline.entries, *fresh.entries)]
    entries |= {entry.key: entry for entry in fresh.entries}
    kept = tuple(entries[key] for key in dict.fromkeys(places) if key in entries)
    environment = {**baseline.environment, **fresh.environment}
    return fresh.model_copy(update={"entries": kept, "environment": environment})


def _selected(key: tuple[str, str, str], selection: Selection, *, with_float: bool = True) -> bool:
    """Whether a run of the selection has the artifact; float is always built."""
    built = (BASELINE,) if with_float else ()
    variants = (*selection.variants, *built) if selection.variants else ()
    return all(
        not names or name in names for name, names in zip(key, (variants, *selection[1:]), strict=True)
    )


class Explanation(NamedTuple):
    """What a pull request shows of a run, and of one that did not finish."""

    word: str
    """The verdict: pass, fail, undecided or error."""
    comment: str
    summary: str
    """The comment and the whole report, for a page of its own."""
    annotations: list[Annotation]
    file: str
    """The recipe that the annotations are about, relative to the repository; '' for one elsewhere."""


def explain(
    outcome: Judgement | EdgeoptError, recipe: str | Path, title: str, environment: Mapping[str, str]
) -> Explanation:
    """The texts for a verdict, or for the error that ended the run."""
    file, text = recipe_text(recipe, environment)
    links = _links(environment)
    if isinstance(outcome, EdgeoptError):
        body = comment.render_failure(title or str(recipe), str(outcome), links=links)
        file = file if isinstance(outcome, RecipeError) else ""  # nothing else is a mistake of the recipe
        return Explanation("error", body, body, of_failure(outcome), file)
    body = comment.render(outcome, title=title, links=links)
    report = markdown.render(outcome.report)
    whole = f"{body}\n<details><summary>The report</summary>\n\n{report}\n</details>\n"
    return Explanation(outcome.word, body, whole, annotations(outcome, text), file)


def recipe_text(recipe: str | Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """The path of a recipe in the repository, '' if it is elsewhere, and its text."""
    try:
        path = find_recipe(recipe)
        text = path.read_text("utf-8")
    except (UsageError, OSError, UnicodeDecodeError):
        return "", ""
    root = environment.get("GITHUB_WORKSPACE") or environment.get("CI_PROJECT_DIR") or os.getcwd()
    try:
        return path.resolve().relative_to(Path(root).resolve()).as_posix(), text
    except ValueError:
        return "", text


def _links(environment: Mapping[str, str]) -> dict[str, str]:
    """The pages of this CI job."""
    if (job := environment.get("CI_JOB_URL")) and environment.get("GITLAB_CI") == "true":
        return {"report": f"{job}/artifacts/browse", "log": job}
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    server, repository, run = (environment.get(name) for name in names)
    if server and repository and run:
        return {"report and log": f"{server}/{repository}/actions/runs/{run}"}
    return {}


def write_files(
    explanation: Explanation, outcome: Judgement | EdgeoptError, folder: Path, identity: str
) -> dict[str, str]:
    """Write what CI systems read to the folder of a run; return the outputs of the job by name.

    Raises:
        UsageError: the folder cannot be written.
    """
    outputs = {"verdict": explanation.word, "comment": str(folder / COMMENT)}
    outputs["artifact"] = re.sub("[^A-Za-z0-9._-]+", "-", f"edgeopt-{identity}").strip("-")[:MAX_NAME]
    with writing(folder, OTHER_FOLDER):
        write_text(folder / COMMENT, explanation.comment)
        if explanation.file:
            write_text(folder / QUALITY, code_quality.render(explanation.annotations, explanation.file))
        if isinstance(outcome, Judgement):
            outputs |= {"report": str(folder / "report.json"), "junit": str(folder / "junit.xml")}
            if outcome.changes is not None:
                judged = outcome.report.model_copy(update={"gates": outcome.compared})
                write_text(folder / CHECK, junit.render(judged))
        lines = (f"EDGEOPT_{name.upper()}={value}" for name, value in outputs.items() if "\n" not in value)
        write_text(folder / OUTPUTS, "\n".join(lines) + "\n")
    return outputs
