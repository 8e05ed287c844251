"""The comparison of several runs on the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from edgeopt.cli.screen.tables import STYLES, UNLIMITED, console
from edgeopt.reports.columns import show
from edgeopt.reports.comparison import Comparison, change_text


def show_comparison(comparison: Comparison) -> None:
    """Print one table: per artifact a row for every run, then the reasons of what is missing, then notes."""
    out = console()
    if not out.is_terminal:
        out.width = UNLIMITED
    shown = comparison.shown
    changed = any(cell.change is not None for line in comparison.lines for cell in line.cells)
    titles = [title for title, _ in shown]
    if changed:
        titles.insert(1, "change")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for title in ("artifact", "run", "status"):
        table.add_column(title, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("gates", no_wrap=True)
    for line in comparison.lines:
        for at, (run, cell) in enumerate(zip(comparison.runs, line.cells, strict=True)):
            cells = [show(cell.result.measurements.get(name)) if cell.result else "–" for _, name in shown]
            if changed:
                cells.insert(1, change_text(cell, comparison))
            table.add_row(
                Text("" if at else line.name),
                Text(run.name),
                Text(cell.status, STYLES.get(cell.status, "yellow")),
                *map(Text, cells),
                Text(cell.gate, STYLES.get(cell.gate, "yellow")),
                end_section=at == len(line.cells) - 1,
            )
    out.print(Text(f"{comparison.runs[0].report.recipe}, compared with {comparison.runs[0].name}", "italic"))
    out.print(table)
    for line in comparison.lines:
        for run, cell in zip(comparison.runs, line.cells, strict=True):
            if cell.status != "ok":
                out.print(
                    Text(
                        f"{line.name} in {run.name}: {cell.status}: {cell.reason}",
                        STYLES.get(cell.status, "yellow"),
                    )
                )
    for note in comparison.notes:
        out.print(Text(f"note: {note}", "dim"))
