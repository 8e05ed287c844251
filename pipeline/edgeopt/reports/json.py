"""The report as ``report.json``: the stable interface for CI scripts and firmware builds."""

from edgeopt.results import Report


def render(report: Report) -> str:
    """JSON text of a report."""
    return report.model_dump_json(by_alias=True, indent=2) + "\n"
