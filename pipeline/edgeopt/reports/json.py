"""The report as ``report.json``: the contract that CI scripts and firmware builds read."""

from edgeopt.results import Report


def render(report: Report) -> str:
    """JSON text of a report."""
    return report.model_dump_json(by_alias=True, indent=2) + "\n"
