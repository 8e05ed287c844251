"""Reports and plans as tables and trees on the terminal."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_jsonable_python
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from edgeopt.config import registry
from edgeopt.recipe.document import ModelPart
from edgeopt.recipe.plan import Built, Plan
from edgeopt.reports.cards import cards
from edgeopt.reports.columns import (
    OUTPUT_TITLES,
    are_worth_a_table,
    columns,
    doubts,
    output_columns,
    output_rows,
    show,
)
from edgeopt.results import ALWAYS, GUESSES, Report, Result, Verdict

STYLES = {"ok": "green", "pass": "green", "failed": "red", "fail": "red", "skipped": "yellow"}
RECOMMENDED = {"ship": "green", "unjudged": "yellow", "none": "red"}
PLAIN_WIDTH = 160
UNLIMITED = 100_000
GAP = 2
"""Spaces between two columns of results."""
NARROWEST_VARIANT = 12
FIRST_TITLES = ("size", "arena", "SRAM", "p50", "÷ float")
"""Columns of first priority, after the metrics and the drop of the first one."""
LATER_TITLES = ("agreement", "SNR", "p90", "MACs", "peak memory")
"""Columns of second priority; all others follow in the order of the report."""


def console() -> Console:
    """stdout, with a fixed width if it is not a terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=PLAIN_WIDTH)


def show_report(report: Report, out: Console | None = None) -> None:
    """Print the tables of each device, failed results, gates that did not pass, and what to ship.

    A terminal shows the columns that fit, uncut, and a line that names the hidden ones; a file or pipe gets
    all columns.
    """
    out = out or console()
    if not out.is_terminal:
        out.width = UNLIMITED
    hidden: dict[str, None] = {}
    titles = {info.name: info.title for info in report.metrics}
    metrics = [titles.get(report.primary_metric, report.primary_metric)]
    metrics += [info.title for info in report.metrics if info.name not in (report.primary_metric, *ALWAYS)]
    if report.source is not None:
        values = ", ".join(f"{name} {show(value)}" for name, value in report.source.measurements.items())
        summary = values or report.source.reason or "outputs only"
        source = f"source model {report.source.path} ({report.source.format})"
        count = f", n = {report.run.samples}" if report.run.samples else ""
        out.print(Text(f"{source}: {summary}{count}"))
    for note in report.run.notes:
        if not note.startswith(tuple(GUESSES.values())):  # the last lines
            out.print(Text(f"note: {note}", "yellow"))
    for device in report.devices():
        rows = [row for row in report.results if row.device == device]
        requested = columns(report, rows)
        table, omitted = _results(rows, requested, metrics, out.width if out.is_terminal else None)
        out.print(Text(f"{report.recipe} on {device}", "italic"))
        out.print(table)
        hidden |= dict.fromkeys(omitted)
        outputs = _outputs(rows, titles)
        if outputs is not None:
            out.print(outputs)
        if changed := _changed(rows):
            out.print(Text(f"changed decisions of {report.run.samples} samples: {changed}"))
        for note in dict.fromkeys(note for row in rows for note in row.notes):
            about = [f"{row.variant}.{row.format}" for row in rows if note in row.notes]
            whose = "all artifacts" if len(about) == len(rows) > 1 else ", ".join(about)
            out.print(Text(f"note: {whose}: {note}", "dim"))
    if hidden:
        where = "terminal too narrow" + ("; see report.md" if report.folder else "")
        out.print(Text(f"hidden: {', '.join(hidden)} ({where})", "dim"))
    for info in report.metrics:
        if info.reason:
            out.print(Text(f"metric {info.name} could not be computed: {info.reason}", "red"))
    for row in report.results:
        if row.reason:
            out.print(
                Text(
                    f"{row.variant}.{row.format} on {row.device} {row.status}: {row.reason}",
                    STYLES[row.status],
                )
            )
    blocked = [verdict for verdict in report.gates if verdict.status != "pass"]
    for verdict in blocked:
        where = f"{verdict.variant}.{verdict.format} on {verdict.device}"
        status = "failed" if verdict.status == "fail" else "undecided"
        colour = "red" if verdict.blocks else "yellow"
        out.print(Text(f"gate {status}: {verdict.gate}: {where}: {verdict.reason}", colour))
    if report.gates and not blocked:
        passed = f"all {len(report.gates)} gates pass" if len(report.gates) > 1 else "the gate passes"
        out.print(Text(passed, "green"))
    for card in cards(report):
        out.print(Text(card.summary, f"bold {RECOMMENDED[card.status]}"))
    for doubt in doubts(report):
        out.print(Text(doubt, "yellow"))


def _results(
    rows: Sequence[Result],
    requested: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    width: int | None,
) -> tuple[Table, list[str]]:
    """The table of one device and the titles that do not fit ``width``; without a width, all columns."""
    values = {title: [show(row.measurements.get(name)) for row in rows] for title, name in requested}
    widths = {title: max(map(cell_len, [title, *cells])) for title, cells in values.items()}
    variant = max(map(cell_len, ["variant", *(row.variant for row in rows)]))
    fitting, shown = variant, list(widths)
    if width is not None:
        fixed = ("format", *(row.format for row in rows)), ("status", *(row.status for row in rows))
        room = width - sum(GAP + max(map(cell_len, cells)) for cells in fixed)
        fitting, shown = _fitting(widths, metrics, variant, room)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("variant", no_wrap=True, width=fitting)
    for title in ("format", "status"):
        table.add_column(title, no_wrap=True)
    for title in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        cells = [values[title][index] for title in shown]
        table.add_row(Text(row.variant), row.format, Text(row.status, STYLES[row.status]), *cells)
    return table, [title for title in widths if title not in shown]


def _outputs(rows: Sequence[Result], titles: dict[str, str]) -> Table | None:
    """Every output of the artifacts with several, or with parts that became constant; None if none has."""
    others = output_columns(rows)
    tables = [(row, output_rows(row, others)) for row in rows]
    shown = [(row, lines) for row, lines in tables if are_worth_a_table(lines)]
    if not shown:
        return None
    columns = ["output", *OUTPUT_TITLES, *(titles.get(name, name) for name in others), "parts that died"]
    used = [at for at in range(len(columns)) if any(cells[at] for _, lines in shown for cells in lines)]
    table = Table("artifact", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for at in used:
        number = 0 < at < len(columns) - 1
        table.add_column(columns[at], justify="right" if number else "left", no_wrap=number)
    for row, lines in shown:
        for cells in lines:
            table.add_row(Text(f"{row.variant}.{row.format}"), *(Text(cells[at]) for at in used))
    return table


def _changed(rows: Sequence[Result]) -> str:
    """How many decisions of each artifact and task changed, in words; '' if none did."""
    parts = []
    for row in rows:
        for found in row.findings:
            name = " ".join(filter(None, (f"{row.variant}.{row.format}", found.head)))
            worse = f" ({found.worse} farther from the label)" if found.worse else ""
            parts += [f"{name} {found.changed}{worse}"] if found.changed else []
    return ", ".join(parts)


def _fitting(
    widths: dict[str, int], metrics: Sequence[str], variant: int, room: int
) -> tuple[int, list[str]]:
    """The width of the variant column, and the columns that fit beside it, by priority."""
    wanted = (*metrics[:1], "drop", *metrics[1:], *FIRST_TITLES)
    first = [title for title in wanted if title in widths]
    needed = sum(GAP + widths[title] for title in first)
    variant = min(variant, max(NARROWEST_VARIANT, room - needed))
    left, fits = room - variant, set()
    for title in dict.fromkeys([*first, *LATER_TITLES, *widths]):
        if title in widths and GAP + widths[title] <= left:
            left -= GAP + widths[title]
            fits.add(title)
    return variant, [title for title in widths if title in fits]


def show_plan(plan: Plan, builds: Sequence[Built]) -> None:
    """Print the stages that would run, as a tree."""
    cached_steps = {built.branch.name: len(built.steps) for built in builds}
    tree = Tree(Text(f"{plan.recipe.name}: {plan.source.path} ({plan.source.format})"))
    for branch in plan.branches:
        devices = ", ".join(device.name for device in branch.devices)
        node = tree.add(Text(f"{branch.variant} as {branch.format}, measured on {devices}"))
        for index, stage in enumerate(branch.stages):
            cached = index < cached_steps.get(branch.name, 0)
            # Options of the model part are the same for every stage.
            own = {k: v for k, v in stage.options().items() if k not in ModelPart.model_fields}
            options = {k: v for k, v in own.items() if v != _default(stage, k)}
            suffix = f"  {json.dumps(options)}" if options else ""
            mark = "cached" if cached else "to do"
            node.add(Text(f"{registry.plugin_name(stage)}{suffix}  [{mark}]", "dim" if cached else ""))
    for missing in plan.impossible:
        node = tree.add(Text(f"{missing.variant} as {missing.format}: unavailable", "red"))
        node.add(Text(missing.reason))
        node.add(Text(missing.fix, "yellow"))
    out = console()
    out.print(tree)
    for note in plan.notes:
        out.print(Text(f"note: {note}"))


def plan_as_json(plan: Plan, builds: Sequence[Built]) -> str:
    """The plan as JSON."""
    cached_steps = {built.branch.name: len(built.steps) for built in builds}
    value: dict[str, Any] = {
        "recipe": plan.recipe.name,
        "source": {"path": str(plan.source.path), "format": plan.source.format},
        "branches": [
            {
                "variant": branch.variant,
                "format": branch.format,
                "devices": [device.name for device in branch.devices],
                "stages": [
                    {
                        "stage": registry.plugin_name(stage),
                        "options": stage.options(),
                        "cached": index < cached_steps.get(branch.name, 0),
                    }
                    for index, stage in enumerate(branch.stages)
                ],
            }
            for branch in plan.branches
        ],
        "impossible": [missing._asdict() for missing in plan.impossible],
        "notes": list(plan.notes),
    }
    return json.dumps(value, indent=2)


def _default(stage: Any, name: str) -> Any:
    field = type(stage).model_fields[name]
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    return to_jsonable_python(default)


def show_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print one row per limit and artifact, with the evidence."""
    out = console()
    table = Table()
    for title in ("", "artifact", "limit", "evidence"):
        table.add_column(title)
    for verdict in verdicts:
        table.add_row(
            Text(verdict.status, STYLES.get(verdict.status, "yellow")),
            Text(f"{verdict.variant}.{verdict.format} on {verdict.device}"),
            Text(verdict.gate),
            Text(verdict.reason or "passes"),
        )
    out.print(table)
