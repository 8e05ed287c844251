"""The documentation as a site."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOADED = re.compile(
    r"""(?:<script[^>]*src|<link[^>]*rel="(?:stylesheet|preload)"[^>]*href)="(https?:[^"]+)"""
)


@pytest.mark.slow
def test_it_is_built_without_a_broken_link_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    documents = {
        path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")
    }
    expected = {path.as_posix().replace("README.html", "index.html") for path in documents}
    assert expected | {"CONTRIBUTING.html", "CHANGELOG.html"} <= pages
    for page in pages:
        text = (tmp_path / "site" / page).read_text("utf-8")
        assert not LOADED.findall(text), page
    # The API comes from docstrings, and everything is found by the search.
    api = (tmp_path / "site" / "api.html").read_text("utf-8")
    for name in ("edgeopt.commands.optimize.optimize", "edgeopt.plugin.Stage", "edgeopt.errors.UsageError"):
        assert f'id="{name}"' in api
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text("utf-8"))
    assert {entry["location"].partition("#")[0] for entry in index["docs"]} >= expected - {"404.html"}
