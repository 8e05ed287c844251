"""A diagnosis as a page: the causes, and the graph of the file coloured by the error that each layer adds."""

from edgeopt.devices.device import HOST
from edgeopt.evaluation.diagnosis import Before, Diagnosis
from edgeopt.evaluation.layer_statistics import LayerStatistics
from edgeopt.reports.html import page
from edgeopt.reports.pagedata.findings import Data, cut, finite
from edgeopt.reports.pagedata.graph import matched, nodes_of
from edgeopt.reports.pagedata.rows import SENTENCE
from edgeopt.results import Report

SCRIPTS = ("elements.js", "theme.js", "scales.js", "findings.js", "graph.js", "diagnosis.js")
MAX_LAYERS = 400
"""Layers of the table, those with the largest share of the error first."""


def render(diagnosis: Diagnosis) -> str:
    """The page; the same diagnosis gives the same bytes."""
    comparison = diagnosis.comparison
    ranked = sorted(comparison.layers, key=lambda layer: -layer.share)
    errors, _ = matched(diagnosis.graph, [(layer.name, layer.share) for layer in comparison.layers])
    data = {
        "row": {
            "at": 0,
            "variant": cut(diagnosis.variant),
            "format": cut(diagnosis.format),
            "device": cut(diagnosis.data),
            "errors": errors if any(value is not None for value in errors) else None,
            "times": None,
        },
        "graph": nodes_of(diagnosis.graph),
        "facts": _facts(diagnosis),
        "causes": [cut(cause.text, SENTENCE) for cause in diagnosis.causes],
        "patch": cut(diagnosis.patch_text, SENTENCE),
        "notes": [cut(note, SENTENCE) for note in diagnosis.notes],
        "layers": [_layer(layer) for layer in ranked[:MAX_LAYERS]],
        "count": len(ranked),
    }
    return page(
        "diagnosis.html",
        "edgeopt diagnosis",
        cut(f"{diagnosis.recipe}: {diagnosis.variant}.{diagnosis.format}"),
        SCRIPTS,
        data,
    )


def with_evaluation(diagnosis: Diagnosis, report: Report) -> Diagnosis:
    """With what a run found on its evaluation data, on this machine or else on the first device."""
    rows = [
        row
        for row in report.results
        if (row.variant, row.format) == (diagnosis.variant, diagnosis.format) and row.status == "ok"
    ]
    row = min(rows, key=lambda row: row.device != HOST, default=None)
    if row is None:
        return diagnosis
    found = Before(variant=row.variant, status=row.status, measurements=row.measurements)
    return diagnosis.model_copy(update={"evaluated": found})


def evaluation(diagnosis: Diagnosis) -> str:
    """The quality of the artifact on the evaluation data, with its drop; '' if it is unknown."""
    values = diagnosis.evaluated.measurements if diagnosis.evaluated is not None else {}
    parts = []
    for name, value in values.items():
        if value.role == "quality":
            parts.append(f"{name} {value.text}")
            if drop := values.get(f"{name}_drop"):
                ends = [drop.model_copy(update={"value": end}).text for end in drop.ci95 or ()]
                parts.append(f"drop {drop.text}" + (f" (95 % interval {' to '.join(ends)})" if ends else ""))
    return ", ".join(parts)


def _facts(diagnosis: Diagnosis) -> list[list[str]]:
    comparison = diagnosis.comparison
    facts = [
        ("SNR of the outputs", f"{comparison.snr_db:.1f} dB"),
        ("agreement", "" if comparison.agreement is None else f"{100 * comparison.agreement:.2f} %"),
        (
            "computed in float",
            "" if comparison.written_snr_db is None else f"{comparison.written_snr_db:.1f} dB",
        ),
        ("samples", f"{comparison.samples} of {diagnosis.data}"),
        ("on the evaluation data", evaluation(diagnosis)),
    ]
    return [[title, cut(text)] for title, text in facts if text]


def _layer(layer: LayerStatistics) -> Data:
    spread = "" if layer.weight_spread is None else f"{layer.weight_spread:.0f} ×"
    return {
        "share": finite(layer.share),
        "cells": [
            cut(layer.name),
            cut(layer.operator),
            f"{100 * layer.share:.1f} %",
            *(f"{value:.1f} dB" for value in (layer.alone_snr_db, layer.own_snr_db, layer.snr_db)),
            f"{100 * layer.clipped:.2f} %",
            spread,
            f"{layer.outlier:.1f} ×",
        ],
    }
