"""Renders the templates next to this module."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from edgeopt.errors import MissingPackageError, install
from edgeopt.publish.kit import c_arrays, c_names

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = files("edgeopt.publish.kit").joinpath("templates")
SUFFIX = ".j2"


def render(template: str, **values: Any) -> str:
    """Render ``templates/<template>.j2``; a missing value is an error.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    text = _environment().get_template(template + SUFFIX).render(**values)
    return text.strip("\n") + "\n"


def templates(folder: str) -> dict[str, str]:
    """The templates in a subfolder of ``templates``, by output file; empty if the folder does not exist."""
    path = FOLDER.joinpath(folder)
    if not path.is_dir():
        return {}
    names = sorted(file.name for file in path.iterdir() if file.name.endswith(SUFFIX))
    return {name.removesuffix(SUFFIX): f"{folder}/{name}".removesuffix(SUFFIX) for name in names}


@cache
def _environment() -> "Environment":
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingPackageError(
            "bundles require jinja2, which is not installed", fix=install("publish")
        ) from error
    environment = Environment(
        # The output is source code and Markdown, not HTML.
        autoescape=False,
        loader=FunctionLoader(lambda name: FOLDER.joinpath(name).read_text("utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(comment=c_names.comment, string=c_names.string, rows=c_arrays.rows)
    return environment
