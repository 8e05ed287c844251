"""Failures of a run at the lines of its recipe: of a gate, or of the variant that failed."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from edgeopt.config.yaml_source import Path as Loc
from edgeopt.config.yaml_source import read_yaml
from edgeopt.errors import EdgeoptError, RecipeError
from edgeopt.evaluation.judgement import Judgement
from edgeopt.recipe.document import GatePart
from edgeopt.results import LIMITS, Verdict


class Annotation(NamedTuple):
    """One message; ``line`` counts from 1, 0 means none."""

    level: Literal["error", "warning"]
    title: str
    message: str
    line: int = 0


class Lines:
    """Where a recipe defines its gates and variants, as far as its text can be read."""

    def __init__(self, recipe: str) -> None:
        try:
            data, self._positions = read_yaml(recipe, "recipe")
        except RecipeError:
            data, self._positions = None, {}
        gates = data.get("gates") if isinstance(data, dict) else None
        self._gates = [_words(entry) for entry in gates] if isinstance(gates, list) else []

    def of_gate(self, gate: str) -> int:
        """The line of the gate whose metric, limit and filters are most like those of a verdict."""
        words = set(gate.split())
        scores = [
            len(words & own) / len(words | own) if start == gate.split()[:2] else 0.0
            for start, own in self._gates
        ]
        best = max(scores, default=0.0)
        return self._line(("gates", scores.index(best))) if best else self._line(("gates",))

    def of_variant(self, name: str) -> int:
        return self._line(("optimize", name)) or self._line(("formats",))

    def _line(self, loc: Loc) -> int:
        return self._positions.get(loc, (0, 0))[0]


def _words(entry: object) -> tuple[list[str], set[str]]:
    """Metric and limit of a gate as its verdicts show them, and all its words."""
    try:
        part = GatePart.model_validate(entry)
    except ValueError:
        return [], set()
    kind = next(kind for kind in LIMITS if getattr(part, kind) is not None)
    limit = getattr(part, kind)
    filters = {key: getattr(part, key) for key in ("variants", "formats", "devices", "classes")}
    words = [part.metric, kind, f"{limit:g}" if isinstance(limit, float) else str(limit)]
    words += [f"{key}={','.join(names)}" for key, names in filters.items() if names]
    words += [f"output={part.output}"] if part.output is not None else []
    words += [f"confidence={part.confidence:g}"] if part.confidence is not None else []
    return words[:2], set(words)


def annotations(judgement: Judgement, recipe: str) -> list[Annotation]:
    """The failures of a run, those that decide its verdict first. ``recipe``: text of the recipe."""
    lines = Lines(recipe)
    found = [
        Annotation(
            "error",
            f"{row.variant}.{row.format} on {row.device}",
            f"{row.status}: {row.reason}",
            lines.of_variant(row.variant),
        )
        for row in judgement.missing
    ]
    found += _of(judgement.gates, lines, by_gate=True)
    found += _of(judgement.compared, lines, by_gate=False)
    return sorted(found, key=lambda annotation: annotation.level != "error")


def _of(verdicts: Sequence[Verdict], lines: Lines, *, by_gate: bool) -> Iterator[Annotation]:
    for verdict in verdicts:
        if verdict.status == "pass":
            continue
        line = lines.of_gate(verdict.gate) if by_gate else lines.of_variant(verdict.variant)
        where = "" if verdict.variant == "-" else f": {verdict.variant}.{verdict.format} on {verdict.device}"
        level: Literal["error", "warning"] = "error" if verdict.blocks else "warning"
        yield Annotation(level, f"{verdict.gate}{where}", f"{verdict.status}: {verdict.reason}", line)


def of_failure(error: EdgeoptError) -> list[Annotation]:
    """The mistakes of a recipe at their lines, or the message that ended a run."""
    if isinstance(error, RecipeError) and error.problems:
        return [
            Annotation(
                "error", "recipe", f"{problem.path}: {problem.message}".removeprefix(": "), problem.line
            )
            for problem in error.problems
        ]
    return [Annotation("error", "edgeopt could not run", str(error))]
