"""What the site takes from outside docs/: the files that documents link to, under the same names.

A hook of MkDocs (mkdocs.yml). On a code host, the links work as they are; in the site, they lead to copies.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents at the top of the repository, the shipped recipes, and the files for deployment."""
    shipped = [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "deploy").glob("*.*"))]
    for path in (*(ROOT / name for name in PAGES), *shipped):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links out of docs/, and those of the documents at the top, to their places in the site."""
    here = page.file.src_uri
    source = ROOT / here if here in PAGES else ROOT / "docs" / here

    def placed(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        in_site = target.relative_to(ROOT / "docs" if target.is_relative_to(ROOT / "docs") else ROOT)
        return Path(os.path.relpath(in_site, Path(here).parent)).as_posix()

    return LINK.sub(placed, markdown)
