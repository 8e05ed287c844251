"""The commands in the documents: each parses, or names something that exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from documents import DOCUMENTS, ROOT, commands, written
from edgeopt.cli import app
from edgeopt.devices.device import known_devices
from edgeopt.formats.known import artifact_formats
from edgeopt.reports import RENDERERS

MADE_UP = frozenset("… …) ...".split())
"""Words that stand for more."""
COMMANDS = list(written())
FORMATS = (*artifact_formats(), *RENDERERS, "table", "sarif", "all")


def test_they_are_found() -> None:
    assert len(COMMANDS) > 150
    found = {command.words[:2] for command in COMMANDS}
    assert {("edgeopt", "optimize"), ("edgeopt", "artifacts"), ("make", "demo"), ("pip", "install")} <= found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_document_exists(path: Path) -> None:
    problems = [f"{each}: {why}" for each in COMMANDS if each.path == path and (why := problem(each.words))]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("edgeopt optimise recipe.yaml", "no command 'optimise'"),
        ("edgeopt optimize recipe.yaml --devise host", "No such option: --devise"),
        ("edgeopt devices setup cortex-m now", "unexpected 'now'"),
        ("edgeopt artifacts fetch kws", "no command 'fetch'"),
        ("edgeopt lint model.tflite --device cortex-x", "no device 'cortex-x'"),
        ("edgeopt optimize recipe.yaml --format tflight", "no format 'tflight'"),
        ("PYTHON=python3.12 make everything", "no target everything"),
        ("pip install -c constraints.txt '.[keras,tpu]'", "no extra tpu"),
        ("python benchmarks/nothing.py", "no file benchmarks/nothing.py"),
        ("EDGEOPT_DATA=data edgeopt optimize recipe.yaml -o run && make test | cat > file", ""),
    ],
)
def test_a_stale_command_is_noticed(line: str, why: str) -> None:
    assert next(filter(None, map(problem, commands(line))), "").startswith(why)


def problem(words: tuple[str, ...]) -> str:
    """Why a command cannot be run as it is written; empty if it can."""
    program = Path(words[0]).name
    if program == "edgeopt":
        return _edgeopt(words[1:])
    if program == "make":
        return _make(words[1:])
    if program == "pip":
        return _pip(words[1:])
    files = [word for word in words[1:] if word.endswith(".py") or word.startswith("tests/")]
    return next((f"no file {name}" for name in files if not (ROOT / name).exists()), "")


def _edgeopt(words: tuple[str, ...]) -> str:
    """Parse as the command line does, without running anything."""
    command, name, left = typer.main.get_command(app), "edgeopt", [w for w in words if w not in MADE_UP]
    context: Any = command.make_context(name, [], resilient_parsing=True)
    while getattr(command, "commands", None):
        if not left or left[0].startswith("-"):
            break
        name = left.pop(0)
        if name not in command.commands:
            return f"no command {name!r}"
        command = command.commands[name]
        context = type(context)(command, parent=context, info_name=name)
    try:
        given, extra, _ = command.make_parser(context).parse_args(list(left))
    except Exception as error:  # noqa: BLE001 - the parser's own kinds are private
        is_mentioned = left and "requires an argument" in str(error) and left[-1] in str(error)
        return "" if is_mentioned else str(error)  # a sentence about an option names it without its value
    if extra:
        return f"unexpected {' '.join(extra)!r}"
    for option, known in (("device", known_devices()), ("format", FORMATS)):
        values = given.get(option) or []
        for value in [values] if isinstance(values, str) else values:
            if value.islower() and "/" not in value and "." not in value and value not in known:
                return f"no {option} {value!r}"
    return ""


def _make(words: tuple[str, ...]) -> str:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    named = [word for word in words if "=" not in word and not word.startswith("-")]
    return next((f"no target {word}" for word in named if word not in targets), "")


def _pip(words: tuple[str, ...]) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = re.findall(r"\[([\w,]+)\]", " ".join(words))
    extras = {extra for group in named for extra in group.split(",")}
    unknown = extras - set(project["optional-dependencies"])
    return f"no extra {', '.join(sorted(unknown))}" if unknown else ""
