"""The names of layers in the source model, for what a run shows and records."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeopt.errors import EdgeoptError
from edgeopt.formats.known import format_named
from edgeopt.formats.layer_names import SourceNames
from edgeopt.plugin import Format, Operator
from edgeopt.recipe.plan import Built, Plan
from edgeopt.results import Breakdown, Trial

Rename = Callable[[str], str]


def source_names(plan: Plan, built: Built) -> SourceNames:
    """The names of the source, which its first file that keeps them declares."""
    for model in (plan.source, *(step.model for step in built.steps)):
        with suppress(EdgeoptError):  # whoever runs the file says what is wrong with it
            if names := format_named(model.format).weight_names(model.path):
                return SourceNames.of_weights(names)
    return SourceNames()


def operator_names(built: Built, names: SourceNames) -> tuple[list[str], Mapping[str, str]]:
    """The operators of an artifact by their names in the source, and those names by the ones in the file.

    A slimmed file has no names: those of the file before, with the same operators, are taken. Both are empty
    if the format does not list operators.
    """
    kind = format_named(built.branch.format)
    files = [step.model.path for step in built.steps if step.model.format == kind.name]
    operators = _operators(kind, files[-1]) if files else None
    if not operators:
        return [], {}
    own = operators
    for file in reversed(files[:-1]):
        before = _operators(kind, file)
        if before is None or [each.kind for each in before] != [each.kind for each in own]:
            break
        own = before
    named = [names.of(operator.name) for operator in own]
    return named, dict(zip((operator.name for operator in operators), named, strict=True))


def _operators(kind: Format, file: Path) -> tuple[Operator, ...] | None:
    """The operators of a file; None of one that cannot be read, which its runtime will reject."""
    try:
        return kind.operators(file)
    except EdgeoptError:
        return None


def renamed_breakdown(breakdown: Breakdown | None, rename: Rename) -> Breakdown | None:
    """A size breakdown with other names of its operators."""
    if breakdown is None:
        return None
    layers = tuple(each.model_copy(update={"name": rename(each.name)}) for each in breakdown.layers)
    graph = tuple(each.model_copy(update={"name": rename(each.name)}) for each in breakdown.graph)
    return breakdown.model_copy(update={"layers": layers, "graph": graph})


def renamed_trial(trial: Trial, rename: Rename) -> Trial:
    """A trial with other names of the layers that it raises."""
    return trial.model_copy(update={"raised": tuple(map(rename, trial.raised))})


def renamed_rows(rows: tuple[dict[str, Any], ...], rename: Rename) -> tuple[dict[str, Any], ...]:
    """The rows of a runtime on layers, with other names of these."""
    return tuple(row | {"layer": rename(str(row["layer"]))} if "layer" in row else row for row in rows)
