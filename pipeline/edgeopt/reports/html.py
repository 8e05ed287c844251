"""The report as a self-contained HTML page: no network, no server, no other files.

The data are embedded as JSON and inserted into the page as text, never as markup.
"""

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib.resources import files

from edgeopt.reports.pagedata import collect
from edgeopt.reports.pagedata.findings import cut
from edgeopt.results import Report

SCRIPTS = (
    "elements.js",
    "theme.js",
    "scales.js",
    "charts.js",
    "table.js",
    "findings.js",
    "pictures.js",
    "plots.js",
    "graph.js",
    "details.js",
    "cards.js",
    "page.js",
)
"""Parts of the report's script, in order of dependence."""
LIBRARY = ("chart.LICENSE.md", "chart.umd.min.js")

_PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def render(report: Report, base: str = "") -> str:
    """The page of a report, or of its part for one device; the same report gives the same bytes.

    ``base`` leads from the page to the run's folder, such as ``../``.
    """
    return page("page.html", "edgeopt report", cut(report.recipe), SCRIPTS, collect(report, base))


def page(body: str, kind: str, title: str, scripts: tuple[str, ...], data: object) -> str:
    """A page with a body of ``page/``, the style, the chart library, the given scripts and their data.

    ``kind`` says in the title of the window what kind of page it is.
    """
    style, library, script = _assets(scripts)
    parts = {
        "kind": kind,
        "title": html.escape(title),
        "policy": _policy(scripts=(library, script), style=style),
        "style": style,
        "library": library,
        "script": script,
        "data": as_script(data),
    }
    # In one pass, so that placeholders inside the inserted text are not replaced.
    whole = _read("frame.html").replace("{{ body }}", _read(body))
    return _PLACEHOLDER.sub(lambda place: parts[place[1]], whole)


def as_script(value: object) -> str:
    """JSON that is safe inside a script element: it cannot close it or open another."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


@cache
def _assets(scripts: tuple[str, ...]) -> tuple[str, str, str]:
    """Style, chart library and script of a page."""
    license_text, code = (_read(name) for name in LIBRARY)
    script = "".join(_read(name) for name in scripts)
    return _read("style.css"), f"/*!\n{license_text}*/\n{code}", f'(() => {{\n"use strict";\n{script}}})();\n'


def _policy(scripts: tuple[str, ...], style: str) -> str:
    """Content Security Policy: only the page's own scripts and style, identified by hash; no network."""
    allowed = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hash_source, scripts)),
        "style-src": _hash_source(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{kind} {sources}" for kind, sources in allowed.items())


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _read(name: str) -> str:
    return files("edgeopt.reports").joinpath("page", name).read_text("utf-8")
