"""A search as a page: every trial in the charts and the table, what was selected, and how to repeat it."""

from collections.abc import Mapping

import yaml

from edgeopt.reports.html import page
from edgeopt.reports.pagedata.findings import Data, cut, finite
from edgeopt.reports.pagedata.rows import SENTENCE
from edgeopt.results import MEASUREMENTS, Measurement
from edgeopt.results.search import Judged, SearchResult, Tried

SCRIPTS = (
    "elements.js",
    "theme.js",
    "scales.js",
    "charts.js",
    "table.js",
    "cards.js",
    "search.js",
)
PLACES = ("best", "front", "dominated", "over a limit", "not measured")
GATES = {"best": "pass", "front": "pass", "dominated": "pass", "over a limit": "fail"}
SELECTION = "the selection data"


def render(result: SearchResult, links: Mapping[str, str] = {}) -> str:
    """The page; the same search gives the same bytes.

    ``links`` are the addresses of the recipes and reports of the judged variants, by their names.
    """
    loss = f"{result.loss} on {SELECTION}"
    titles = [*result.minimize, loss, "noise", "samples", "place"]
    best = result.best
    data = {
        "names": {"variant": "trial", "format": "format"},
        "join": " as ",
        "metric": {"name": cut(loss), "higher": False, "share": True, "source": None},
        "costs": [_cost(name) for name in result.minimize],
        "columns": [{"title": cut(title), "name": cut(title)} for title in titles],
        "rows": [_row(result, tried) for tried in result.trials],
        "searches": [],
        "gates": [],
        "judged": True,
        "devices": [SELECTION],
        "headline": _headline(result),
        "status": "pass" if best is not None else "fail",
        "facts": [
            ["limits", cut("; ".join(result.limits), SENTENCE)],
            ["minimized", ", ".join(result.minimize)],
            ["selected on", cut(f"{result.samples:,} samples: {result.selection}", SENTENCE)],
            ["tried", f"{len(result.trials):,} of {result.points:,} points"],
            ["ended because", cut(result.stopped, SENTENCE)],
        ],
        "dimensions": [
            [cut(name), cut(", ".join(map(_word, values)), SENTENCE)]
            for name, values in result.dimensions.items()
        ],
        "found": [_judged(each, links) for each in result.judged],
        "notes": [cut(note, SENTENCE) for note in result.notes],
    }
    return page("search.html", "edgeopt search", cut(f"{result.variant} of {result.recipe}"), SCRIPTS, data)


def _headline(result: SearchResult) -> str:
    best = result.best
    if best is None:
        return cut(f"No variant meets all limits: {result.closest}", SENTENCE)
    figures = ", ".join(f"{name} {_shown(name, best.objectives[name])}" for name in result.minimize)
    return cut(
        f"Trial {best.number + 1} is the best within the limits, as {best.format}: {figures}", SENTENCE
    )


def _cost(name: str) -> Data:
    kind = MEASUREMENTS[name].kind if name in MEASUREMENTS else "number"
    return {"name": cut(name), "bytes": kind in ("bytes", "memory")}


def _row(result: SearchResult, tried: Tried) -> Data:
    known = tried.objectives
    over = [f"{limit} by {value:.4g}" for limit, value in tried.excess.items() if value > 1e-9]
    costs = {name: _point(name, known[name]) for name in result.minimize if name in known}
    loss = known.get(result.loss)
    return {
        "variant": f"trial {tried.number + 1}",
        "format": cut(tried.format),
        "device": SELECTION,
        "status": {"complete": "ok"}.get(tried.status, tried.status),
        "gate": GATES.get(tried.place, ""),
        "reason": cut(tried.reason, SENTENCE),
        "cells": [
            *(
                [costs[name]["text"], costs[name]["value"]] if name in costs else None
                for name in result.minimize
            ),
            None if loss is None else [f"{loss:+.2%}", finite(loss)],
            [f"{known['noise']:.2g}", finite(known["noise"])] if "noise" in known else None,
            [f"{tried.samples:,}", tried.samples] if tried.samples else None,
            [tried.place, PLACES.index(tried.place)],
        ],
        "accuracy": None if loss is None else _point("", loss, f"{loss:+.2%}"),
        "latency": None,
        "estimated": False,
        **costs,
        "over": cut("; ".join(over), SENTENCE),
        "snippet": cut(_snippet(f"trial-{tried.number + 1}", tried), SENTENCE),
    }


def _point(name: str, value: float, text: str = "") -> Data:
    shown = text or _shown(name, value)
    return {"value": finite(value), "text": shown, "whole": shown, "ends": None}


def _cell(point: Data | None) -> list[object] | None:
    return None if point is None else [point["text"], point["value"]]


def _shown(name: str, value: float) -> str:
    return Measurement.of(name, value).text if name in MEASUREMENTS else f"{value:,.6g}"


def _snippet(name: str, tried: Tried) -> str:
    """The candidate as part of a recipe."""
    document = {"optimize": {name: tried.options}, "formats": [tried.format]}
    text: str = yaml.safe_dump(document, sort_keys=False, width=100)
    return text


def _word(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else yaml.safe_dump(value).strip()


def _judged(judged: Judged, links: Mapping[str, str]) -> Data:
    """One selected variant: what the selection data promised, and what the evaluation data say."""
    return {
        "variant": cut(judged.variant),
        "link": links.get(judged.variant, ""),
        "trial": f"trial {judged.trial + 1}",
        "format": cut(judged.format),
        "report": links.get(judged.format, ""),
        "passed": "pass" if judged.passed else "fail",
        "drops": [
            [cut(name), f"{judged.selection[name]:+.2%}", f"{value:+.2%}", f"{judged.optimism[name]:+.2%}"]
            for name, value in judged.evaluation.items()
        ],
    }
