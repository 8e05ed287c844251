"""The tasks of a recipe, and which of them each metric scores."""

from collections.abc import Callable, Sequence

from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.config.problems import Problems
from edgeopt.config.yaml_source import Path as Loc
from edgeopt.plugin import Head, Metric, NamedMetric, Task
from edgeopt.recipe.document import Document, Use


def heads_of(
    document: Document, resolve: Callable[[Use, Loc], Task | None], problems: Problems
) -> tuple[Head, ...]:
    """The tasks of a recipe; empty if it names none. ``resolve`` finds a plugin and reports why it cannot."""
    if document.task and document.tasks:
        problems.add(("tasks",), "give task for a model with one, or tasks for one with several")
    uses: dict[str, Use] = document.tasks or ({"": document.task} if document.task else {})
    heads = []
    for name, use in uses.items():
        task = resolve(use, ("tasks", name) if document.tasks else ("task",))
        if task is not None:
            heads.append(Head(name, task))
    owners: dict[str, str] = {}
    for head in heads:
        for output in head.outputs:
            owner = owners.setdefault(output, head.name)
            if not output or head.outputs.count(output) > 1:
                problems.add(
                    ("tasks", head.name), "give each name of an output once, joined with +: boxes+scores"
                )
                break
            if owner != head.name:
                problems.add(("tasks", head.name), f"output {output!r} belongs to the task {owner!r} as well")
    return tuple(heads)


def assigned(
    document: Document,
    heads: Sequence[Head],
    metrics: Sequence[NamedMetric],
    problems: Problems,
    *,
    is_list: bool,
) -> list[NamedMetric]:
    """The metrics with the task that each scores; reports those that fit none, or several.

    ``is_list``: whether the recipe gives its metrics in a list.
    """
    uses = {
        use.name or use.uses: (use.of, ("metric", index) if is_list else ("metric",))
        for index, use in enumerate(document.metric)
    }
    if not heads:
        _check_common(metrics, problems)
    found = []
    for named in metrics:
        of, loc = uses.get(named.name, (None, ("metric",)))
        if of is not None and of not in document.tasks:
            problems.add((*loc, "of"), f"no task {of!r}{nearest(of, list(document.tasks))}")
        elif named.metric.against == "labels" and heads:
            named = named._replace(head=_head_of(named, of, heads, loc, problems))
        found.append(named)
    return found


def _check_common(metrics: Sequence[NamedMetric], problems: Problems) -> None:
    """Check that one task fits all metrics."""
    judged = [named for named in metrics if named.metric.against == "labels" and named.metric.tasks]
    if judged and not set.intersection(*(set(named.metric.tasks) for named in judged)):
        listed = ", ".join(f"{named.name} of {' or '.join(named.metric.tasks)}" for named in judged)
        problems.add(
            ("metric",),
            f"the metrics are of different tasks: {listed}; for a model with several tasks, say with 'tasks' "
            "which outputs belong to which",
        )


def _head_of(named: NamedMetric, of: str | None, heads: Sequence[Head], loc: Loc, problems: Problems) -> str:
    """The name of the task that a metric scores."""
    candidates = [head for head in heads if of in (None, head.name)]
    tasks = {head.name: registry.plugin_name(head.task) for head in candidates}
    fitting = [name for name, task in tasks.items() if task in (named.metric.tasks or (task,))]
    if not fitting:
        suitable = sorted(
            name
            for name, metric in registry.plugins(Metric).items()
            if not metric.tasks or set(tasks.values()) & set(metric.tasks)
        )
        problems.add(
            loc,
            f"{named.name!r} is a metric of {' or '.join(named.metric.tasks)}, and the task is "
            f"{' or '.join(tasks.values())}; its metrics are {', '.join(suitable)}",
        )
    elif len(fitting) > 1:
        problems.add(
            loc,
            f"{named.name!r} fits the tasks {' and '.join(fitting)}: say which, "
            f"{{uses: ..., of: {fitting[0]}}}",
        )
    return fitting[0] if fitting else ""
