"""Text from the templates beside this module."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from edgeopt.errors import MissingPackageError
from edgeopt.publish.kit import c_arrays, c_names

if TYPE_CHECKING:
    from jinja2 import Environment

SUFFIX = ".j2"


def render(template: str, **values: Any) -> str:
    """The text of ``templates/<template>.j2``; a value that a template names and nobody gave is an error.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    text = _environment().get_template(template + SUFFIX).render(**values)
    return text.strip("\n") + "\n"


@cache
def _environment() -> "Environment":
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingPackageError(
            "bundles are made with jinja2, which is not installed", fix="pip install 'edgeopt[publish]'"
        ) from error
    folder = files("edgeopt.publish.kit").joinpath("templates")
    environment = Environment(
        # What is written is code: there is nothing in it to escape for a browser.
        autoescape=False,
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(comment=c_names.comment, string=c_names.string, rows=c_arrays.rows)
    return environment
