"""The report as one page that needs nothing else: no network, no server, no file beside it.

Everything that was measured lies in the page as JSON and reaches the screen as text, never as markup.
"""

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib.resources import files

from edgeopt.reports.pagedata import collect
from edgeopt.reports.pagefindings import cut
from edgeopt.results import Report

SCRIPTS = (
    "elements.js",
    "theme.js",
    "scales.js",
    "charts.js",
    "table.js",
    "findings.js",
    "details.js",
    "page.js",
)
"""Parts of the report's own script, in the order in which they need each other."""
LIBRARY = ("chart.LICENSE.md", "chart.umd.min.js")

_PLACE = re.compile(r"\{\{ (\w+) \}\}")
_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def render(report: Report) -> str:
    """The page of a report, or of one device's part of it: the same report gives the same bytes."""
    return page("page.html", cut(report.recipe), SCRIPTS, collect(report))


def page(template: str, title: str, scripts: tuple[str, ...], data: object) -> str:
    """A page from a file of ``page/``, with a script of several such files and what that script shows."""
    style, library, script = _assets(scripts)
    parts = {
        "title": html.escape(title),
        "policy": _policy(scripts=(library, script), style=style),
        "style": style,
        "library": library,
        "script": script,
        "data": as_script(data),
    }
    # In one pass: what was put in is not searched for places again.
    return _PLACE.sub(lambda place: parts[place[1]], _read(template))


def as_script(value: object) -> str:
    """JSON that neither ends the element it stands in nor opens another."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_ESCAPED)


@cache
def _assets(scripts: tuple[str, ...]) -> tuple[str, str, str]:
    """Style, chart library and script, as the page holds them."""
    licence, code = (_read(name) for name in LIBRARY)
    own = "".join(_read(name) for name in scripts)
    return _read("style.css"), f"/*!\n{licence}*/\n{code}", f'(() => {{\n"use strict";\n{own}}})();\n'


def _policy(scripts: tuple[str, ...], style: str) -> str:
    """What the browser may run and fetch: the page's own scripts and style, and nothing."""
    allowed = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hashed, scripts)),
        "style-src": _hashed(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{kind} {sources}" for kind, sources in allowed.items())


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _read(name: str) -> str:
    return files("edgeopt.reports").joinpath("page", name).read_text("utf-8")
