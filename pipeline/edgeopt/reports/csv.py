"""The report as CSV: one row per artifact and device, one column per measurement."""

import csv
import io

from edgeopt.reports.plain import printable
from edgeopt.results import Report

FIXED = ("variant", "format", "device", "status", "path", "digest", "reason")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(report: Report) -> str:
    """CSV text of a report; missing measurements are empty cells."""
    names = list(dict.fromkeys(name for row in report.results for name in row.measurements))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*FIXED, *names])
    for row in report.results:
        artifact = row.artifact
        texts = (
            row.variant,
            row.format,
            row.device,
            row.status,
            artifact.path if artifact else "",
            artifact.digest if artifact else "",
            row.reason,
        )
        values = (row.measurements.get(name) for name in names)
        table.writerow(
            [*map(_escape_formula, texts), *("" if value is None else repr(value.value) for value in values)]
        )
    return text.getvalue()


def _escape_formula(cell: str) -> str:
    """Quote text that a spreadsheet would interpret as a formula."""
    return printable("'" + cell if cell.startswith(FORMULA) else cell)
