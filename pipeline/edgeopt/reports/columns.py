"""The columns of the tables of results and of outputs, in every report and on the terminal."""

from collections.abc import Sequence

from edgeopt.results import (
    ALWAYS,
    GUESSES,
    MEASUREMENTS,
    SPARSE,
    Measurement,
    OutputChange,
    Report,
    Result,
)

FIDELITY = {"agreement": "agreement", "fidelity_snr_db": "SNR"}
"""Metrics without labels that are shown in tables, with their titles."""
COLUMNS = (
    "size_bytes",
    "arena_bytes",
    "sram_bytes",
    "flash_bytes",
    "estimated_flash_max_bytes",
    "latency_p50_ms",
    "latency_ratio",
    "latency_p90_ms",
    "npu_cycles",
    "npu_share",
    "estimated_latency_ms",
    "estimated_latency_min_ms",
    "estimated_latency_max_ms",
    "peak_memory_bytes",
    "gzip_bytes",
    "macs",
    "parity_flips",
)
"""Columns after the metrics, in this order: what limits an artifact on its device comes first."""


def columns(report: Report, rows: Sequence[Result]) -> list[tuple[str, str]]:
    """Titles and measurements of a table's columns, without those that no row has."""
    metric = report.primary_metric
    titles = {info.name: info.title for info in report.metrics}
    accuracy = [(titles.get(metric, metric), metric), ("drop", f"{metric}_drop")] if metric else []
    accuracy += [
        (info.title, info.name) for info in report.metrics if info.against == "labels" and info.name != metric
    ]
    fidelity = [(titles.get(name, title), name) for name, title in FIDELITY.items()]
    fidelity += [
        (info.title, info.name)
        for info in report.metrics
        if info.against == "source" and info.name not in ALWAYS
    ]
    hidden = {"gzip_bytes": not _compresses(rows), "macs": not _shrinks(rows)}
    costs = [(MEASUREMENTS[name].title, name) for name in COLUMNS if not hidden.get(name)]
    possible = [*accuracy, *fidelity, *costs]
    return [(title, name) for title, name in possible if any(name in row.measurements for row in rows)]


def _compresses(rows: Sequence[Result]) -> bool:
    """Whether some file is sparse enough for a column with its compressed size."""
    return any(row.measurements["sparsity"].value >= SPARSE for row in rows if "sparsity" in row.measurements)


def _shrinks(rows: Sequence[Result]) -> bool:
    """Whether variants of the same format differ in their MACs."""
    by_format: dict[str, set[float]] = {}
    for row in rows:
        if "macs" in row.measurements:
            by_format.setdefault(row.format, set()).add(row.measurements["macs"].value)
    return any(len(values) > 1 for values in by_format.values())


def higher_is_better(report: Report, metric: str) -> bool:
    """Whether higher values of a metric are better."""
    for info in report.metrics:
        if info.name == metric:
            return info.better == "higher"
    # Old reports do not declare it, but a positive drop means that the artifact is worse.
    baseline = report.source.measurements.get(metric) if report.source is not None else None
    if baseline is None:
        return True
    pairs = (
        (row.measurements[metric].value, row.measurements[f"{metric}_drop"].value)
        for row in report.results
        if metric in row.measurements and f"{metric}_drop" in row.measurements
    )
    return sum((baseline.value - value) * drop for value, drop in pairs) >= 0


OUTPUT_TITLES = ("SNR", "largest error", "agreement")


def output_columns(rows: Sequence[Result]) -> list[str]:
    """Metrics of single outputs, beside those that every report has."""
    named = (name for row in rows for values in row.outputs.values() for name in values)
    return [name for name in dict.fromkeys(named) if name not in ALWAYS]


def output_rows(result: Result, others: Sequence[str] = ()) -> list[list[str]]:
    """Every output, compared with that of the source model.

    Its name, what ``OUTPUT_TITLES`` says, the metrics ``others``, and the parts that became constant.
    """
    changes = result.output_changes or tuple(
        OutputChange(
            name=name, **{key: values[known].value for key, known in FIELDS.items() if known in values}
        )
        for name, values in result.outputs.items()  # of earlier reports
    )
    return [
        [
            change.name,
            "" if change.snr_db is None else f"{change.snr_db:.1f} dB",
            "" if change.max_abs_error is None else f"{change.max_abs_error:.3g}",
            "" if change.agreement is None else show(Measurement(value=change.agreement, kind="fraction")),
            *(show(result.outputs.get(change.name, {}).get(name)) for name in others),
            change.reason,
        ]
        for change in changes
    ]


FIELDS = {"snr_db": "fidelity_snr_db", "max_abs_error": "max_abs_error", "agreement": "agreement"}
"""Measurements of an output that are fields of its change."""


def are_worth_a_table(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the outputs of a model say more than its row of the table of results."""
    return len(rows) > 1 or any(row[-1] for row in rows)


def doubts(report: Report) -> list[str]:
    """The notes that put every figure in doubt, with the figure of the original model to recognise it by."""
    figure = report.source.measurements.get(report.primary_metric) if report.source else None
    gets = f"; the original model gets {report.primary_metric} {show(figure)} with it"
    asked = f"{gets}: is that what you measured?" if figure else ""
    return [note + asked for note in report.run.notes if note.startswith(tuple(GUESSES.values()))]


def show(measurement: Measurement | None) -> str:
    """Format one measurement."""
    return "–" if measurement is None else measurement.text
