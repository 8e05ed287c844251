"""The card of each device: the artifact to ship, with the facts that decide it, in all reports."""

import shlex
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

from edgeopt.config.text import as_name
from edgeopt.config.units import show_bytes
from edgeopt.devices.device import HOST
from edgeopt.reports.columns import FIDELITY, higher_is_better, show
from edgeopt.reports.plain import printable
from edgeopt.results import MEASUREMENTS, Measurement, Recommendation, Report, Result

HEADLINES = {
    "ship": "Ship this on {place}",
    "unjudged": "No recommendation on {place}: no gate limits the quality",
    "none": "Nothing to ship on {place}",
}
PREFERENCES = ("smallest", "fastest")
TESTED = "tested on"
RAM = ("arena_bytes", "sram_bytes", "peak_memory_bytes")
FLASH = ("flash_bytes", "estimated_flash_max_bytes", "size_bytes")
"""Measurements of the use of a memory, the first that there is."""
MAX_PATH = 1000
"""Longest path that is a link."""
MINUS = "\N{MINUS SIGN}"


class Line(NamedTuple):
    """One property of the artifact."""

    title: str
    text: str
    share: float | None = None
    """Fraction of the device's limit."""


class Card(NamedTuple):
    """The recommendation for one device."""

    device: str
    place: str
    """Where the artifact goes: the device, or the kind of device that it stands in for."""
    status: str
    headline: str
    artifact: str
    """Variant and format; empty if there is nothing to show."""
    path: str
    """Of the file, relative to the report's folder; empty if there is none."""
    lines: tuple[Line, ...]
    reason: str
    pull: str
    """Command that fetches the artifact from a release; empty unless it is recommended."""

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        apart = (*PREFERENCES, TESTED)
        facts = ", ".join(line.text for line in self.lines if line.title not in ("flash", *apart))
        facts += "".join(f"; {line.title} {line.text}" for line in self.lines if line.title in apart)
        if self.status == "ship":
            remark = f" ({self.reason})" if self.reason else ""
            return f"ship {self.path or self.artifact} on {self.place}: {facts}{remark}"
        if not self.artifact:
            return f"ship nothing on {self.place}: {self.reason}"
        if self.status == "none":
            return f"ship nothing on {self.place}: {self.artifact} is nearest, but fails {self.reason}"
        return f"no recommendation on {self.place}, no gate limits the quality; {self.artifact}: {facts}"


def cards(report: Report) -> list[Card]:
    """The card of every device that has a recommendation."""
    return [_card(report, each) for each in report.recommended]


def publishing(report: Report) -> str:
    """How to publish a run and to fetch what it recommends, in one line; '' if it recommends nothing."""
    shipped = [card for card in cards(report) if card.pull]
    if not shipped or report.folder is None or report.exit_code:
        return ""
    found = min(shipped, key=lambda card: card.device == HOST)  # the first other device, if there is one
    push = shlex.join(["edgeopt", "artifacts", "push", str(report.folder), "--channel", "stable"])
    return f"publish: {push}; fetch: {found.pull}"


def _card(report: Report, found: Recommendation) -> Card:
    row = _row(report, found.device, found.variant, found.format)
    stands_in = report.is_stand_in(found.device)
    command = ""
    if found.status == "ship":
        device = report.target.device if report.target and stands_in else found.device
        options = ["--device", device, "--variant", found.variant, "--format", found.format]
        name = as_name(report.recipe)
        command = shlex.join(["edgeopt", "artifacts", "pull", name, *options, "--out", name])
    return Card(
        device=found.device,
        place=report.target.title if report.target and stands_in else found.device,
        status=found.status,
        headline=HEADLINES[found.status].format(place=report.place(found.device)),
        artifact=f"{row.variant}.{row.format}" if row else "",
        path=row.artifact.path if row and row.artifact else "",
        lines=(*_lines(report, row), *_alternative(report, found), *_tested(report, row)) if row else (),
        reason=found.reason,
        pull=command,
    )


def _row(report: Report, device: str, variant: str, form: str) -> Result | None:
    key = (variant, form, device)
    return next((row for row in report.results if (row.variant, row.format, row.device) == key), None)


def _alternative(report: Report, found: Recommendation) -> Iterator[Line]:
    """What would be shipped by the other preference."""
    other = _row(report, found.device, *found.alternative) if found.alternative else None
    if other is not None and "size_bytes" in other.measurements:
        facts = (show(other.measurements["size_bytes"]), _latency(report, other))
        title = "smallest" if found.prefer == "fastest" else "fastest"
        yield Line(title, f"{other.variant}.{other.format}: {', '.join(filter(None, facts))}")


def _lines(report: Report, row: Result) -> Iterator[Line]:
    yield from _quality(report, row)
    values = row.measurements
    if size := values.get("size_bytes"):
        yield Line("size", show(size) + _of_float(report, row))
    if latency := _latency(report, row):
        yield Line("latency", latency)
    limits = report.limits.get(row.device)
    for title, names, limit in (
        ("RAM", RAM, limits.ram if limits else None),
        ("flash", FLASH, limits.flash if limits else None),
    ):
        known = next((name for name in names if name in values), None)
        if known is None or (limit is None and known == "size_bytes"):
            continue
        text = f"{show(values[known])} {MEASUREMENTS[known].title}"
        if known == "estimated_flash_max_bytes" and (least := values.get("estimated_flash_min_bytes")):
            text = f"estimated {show(least)} to {show(values[known])} with the runtime"
        if limit:
            share = values[known].value / limit
            yield Line(title, f"{text}, {100 * share:.0f} % of {show_bytes(limit)}", share)
        elif known in ("arena_bytes", "sram_bytes"):
            yield Line(title, text)


def _quality(report: Report, row: Result) -> Iterator[Line]:
    """The first metric of the recipe with its change from the original model; without one, the fidelity."""
    metric, values = report.primary_metric, row.measurements
    if metric not in values:
        known = [f"{title} {show(values[name])}" for name, title in FIDELITY.items() if name in values]
        yield from [Line("fidelity", ", ".join(known))] if known else []
        return
    text = show(values[metric])
    if drop := values.get(f"{metric}_drop"):
        text += f" ({_change(drop, -1.0 if higher_is_better(report, metric) else 1.0)})"
    yield Line(next((info.title for info in report.metrics if info.name == metric), metric), text)


def _change(drop: Measurement, sign: float) -> str:
    """The change from the original model; a drop is positive where the artifact is worse."""

    def shown(value: float) -> str:
        # Adding zero removes the sign of a negative one.
        return show(drop.model_copy(update={"value": value + 0.0})).replace("-", MINUS)

    change = f"{shown(sign * drop.value)} against the original model"
    if drop.ci95 is None:
        return change
    low, high = sorted(sign * end for end in drop.ci95)
    return f"{change}, 95 % interval {shown(low)} to {shown(high)}"


def _of_float(report: Report, row: Result) -> str:
    """The size relative to that of the float artifact of the same format."""
    for other in report.results:
        same = (other.variant, other.format, other.device) == ("float", row.format, row.device)
        if same and other is not row and (size := other.measurements.get("size_bytes")) and size.value:
            return f" ({row.measurements['size_bytes'].value / size.value:.2f} × float)"
    return ""


def _tested(report: Report, row: Result) -> Iterator[Line]:
    """What a device shows that stands in for another kind, and how to measure on one of these."""
    target = report.target
    if target is not None and report.is_stand_in(row.device):
        yield Line(
            TESTED,
            f"{row.device}, not on {target.title}, where latency and memory are others; {target.hint}",
        )


def _latency(report: Report, row: Result) -> str:
    values = row.measurements
    if "latency_p50_ms" in values:
        ratio = f" ({show(values['latency_ratio'])} float)" if "latency_ratio" in values else ""
        where = f" on {row.device}" if report.is_stand_in(row.device) else ""
        return show(values["latency_p50_ms"]) + ratio + where
    if "estimated_latency_ms" in values:
        return f"{show(values['estimated_latency_ms'])}, estimated"
    if "estimated_latency_max_ms" in values:
        ends = [show(values[f"estimated_latency_{end}_ms"]) for end in ("min", "max")]
        return f"{' to '.join(ends)}, estimated"
    if "npu_cycles" in values:
        return f"{show(values['npu_cycles'])} NPU cycles"
    return ""


def address(path: str, base: str = "") -> str:
    """A relative link to a file of the run's folder, which no path can turn into one to another place."""
    # The dot keeps a name with a colon from being read as a URI scheme; '..' has no business in a report.
    inside = [quote(printable(part), safe="") for part in path.split("/") if part not in ("", ".", "..")]
    return f"./{base}{'/'.join(inside)}" if inside and len(path) <= MAX_PATH else ""
