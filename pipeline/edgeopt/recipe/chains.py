"""Search for chains of stages: a shortest-path search over formats and open intents.

Every stage declares the formats it accepts and produces, and the intents it fulfils, such as
``quantize: int8``. No framework is imported.
"""

import heapq
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.errors import UsageError
from edgeopt.plugin import Stage
from edgeopt.recipe.document import ModelPart
from edgeopt.recipe.recipe import Intent


def find_chain(
    source: str,
    target: str,
    intents: Sequence[Intent],
    model: ModelPart,
    done: frozenset[str] = frozenset(),
) -> tuple[Stage, ...] | None:
    """The shortest chain from ``source`` to ``target`` that fulfils every intent exactly once.

    ``done`` are the names of intents that earlier stages have fulfilled.

    Dijkstra's algorithm; a node is a format with the set of unfulfilled intents. Ties are broken by the
    declared preference of the stages, then by name, so that plans are deterministic.

    Raises:
        UsageError: the stage that fulfils an intent rejects its options.
    """
    stages = registry.plugins(Stage)
    start = (source, frozenset(range(len(intents))))
    queue: list[tuple[tuple[int, int, tuple[str, ...]], str, frozenset[int]]] = [((0, 0, ()), *start)]
    visited: set[tuple[str, frozenset[int]]] = set()
    while queue:
        (length, penalty, chain), current, unfulfilled = heapq.heappop(queue)
        if current == target and not unfulfilled:
            return tuple(instance(stages[name], intents, model) for name in chain)
        if (current, unfulfilled) in visited:
            continue
        visited.add((current, unfulfilled))
        for name, stage, fulfilled in _next_steps(stages, current, unfulfilled, intents, done):
            cost = (length + 1, penalty - stage.preference, (*chain, name))
            heapq.heappush(queue, (cost, stage.produces, unfulfilled - fulfilled))
    return None


def _next_steps(
    stages: dict[str, type[Stage]],
    current: str,
    unfulfilled: frozenset[int],
    intents: Sequence[Intent],
    done: frozenset[str] = frozenset(),
) -> Iterator[tuple[str, type[Stage], frozenset[int]]]:
    """The stages that may follow, each with the indices of the intents it fulfils."""
    for name, stage in stages.items():
        if current not in stage.accepts:
            continue
        fulfilled = frozenset(
            i for i in unfulfilled if intents[i].scheme in stage.fulfils.get(intents[i].name, frozenset())
        )
        before = done | {intent.name for i, intent in enumerate(intents) if i not in unfulfilled}
        blocked = stage.before & before or any(
            intents[i].name in stage.after for i in unfulfilled - fulfilled
        )
        # A stage with intents is skipped unless one is open: nothing is optimized unasked.
        if (fulfilled or not stage.fulfils) and not blocked:
            yield name, stage, fulfilled


def instance(stage: type[Stage], intents: Sequence[Intent], model: ModelPart) -> Stage:
    """A stage with the options of its intents, and the fields it shares with the recipe's model part.

    Raises:
        UsageError: the stage rejects its options.
    """
    schemes = {scheme for names in stage.fulfils.values() for scheme in names}
    options: dict[str, object] = {
        name: getattr(model, name)
        for name in stage.model_fields
        # 'weights' is a file in the model part, but a scheme in pruning.
        if name in ModelPart.model_fields and name not in schemes
    }
    for intent in intents:
        if intent.scheme in stage.fulfils.get(intent.name, frozenset()):
            options |= intent.options
    try:
        return stage.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        known = nearest(where, list(stage.model_fields)) if first["type"] == "extra_forbidden" else ""
        message = f"unknown option{known}" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise UsageError(
            f"{stage.__module__.rpartition('.')[2]} rejects option {where!r}: {message}",
            fix="docs/recipe.md lists its options",
        ) from error


def complete_chain(
    stages: tuple[Stage, ...], source: str, target: str, model: ModelPart
) -> tuple[Stage, ...]:
    """The stages listed by a recipe, with the conversions added that lead to the first and from the last.

    Raises:
        UsageError: a stage does not accept what the one before it produces, or no conversion leads on.
    """
    first = stages[0] if stages else None
    before: tuple[Stage, ...] = ()
    if first is not None and source not in first.accepts:
        chains = [
            chain
            for fmt in sorted(first.accepts)
            if (chain := find_chain(source, fmt, (), model)) is not None
        ]
        if not chains:
            raise UsageError(
                f"{registry.plugin_name(first)} accepts {', '.join(sorted(first.accepts))}, not {source}",
                fix="put a conversion stage before it",
            )
        before = min(chains, key=len)
    current = source
    for stage in (*before, *stages):
        if current not in stage.accepts:
            raise UsageError(
                f"{registry.plugin_name(stage)} accepts {', '.join(sorted(stage.accepts))}, not {current}",
                fix="put a conversion stage before it",
            )
        current = stage.produces
    done = frozenset(name for stage in stages for name in stage.fulfils)
    after = find_chain(current, target, (), model, done)
    if after is None:
        raise UsageError(
            f"the listed stages end with {current}, and no conversion leads from there to {target}", fix=""
        )
    return (*before, *stages, *after)


def reachable(source: str, intents: Sequence[Intent]) -> set[str]:
    """All formats that ``source`` can be converted to with every intent fulfilled."""
    stages = registry.plugins(Stage)
    start = (source, frozenset(range(len(intents))))
    seen, waiting = {start}, [start]
    while waiting:
        current, unfulfilled = waiting.pop()
        for _, stage, fulfilled in _next_steps(stages, current, unfulfilled, intents):
            node = (stage.produces, unfulfilled - fulfilled)
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return {name for name, unfulfilled in seen if not unfulfilled}
