"""What the outputs of a task mean is known to the task, and to nothing that shows or judges them."""

import ast
import re

from edgeopt.config import registry
from edgeopt.evaluation.interpreter import tasks
from edgeopt.plugin import Task
from keyed_texts import PACKAGE, keyed

OWN = ("evaluation/tasks", "testing")
"""Code of single tasks, and toys."""
PAGE = PACKAGE / "reports" / "page"


def names() -> set[str]:
    assert len(tasks()) >= 8
    return set(registry.plugins(Task))


def test_nothing_outside_a_task_is_decided_by_its_name() -> None:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE).as_posix()
        if where.startswith(OWN):
            continue
        for constant in keyed(ast.parse(file.read_text("utf-8"))):
            if constant.value in names():
                found.append(f"{where}:{constant.lineno}: {constant.value!r}")
    assert found == []


def test_the_scripts_of_the_page_know_no_task() -> None:
    found = [
        f"{file.name}: {text}"
        for file in sorted(PAGE.glob("*.js"))
        if not file.name.startswith("chart.")
        for text in re.findall(r"[\"'`](\w+)[\"'`]", file.read_text("utf-8"))
        if text in names()
    ]
    assert found == []


def test_renderers_import_no_task() -> None:
    rooms = [PACKAGE / "reports", PACKAGE / "cli"]
    found = [
        str(file.relative_to(PACKAGE))
        for room in rooms
        for file in sorted(room.rglob("*.py"))
        if "evaluation.tasks" in file.read_text("utf-8")
    ]
    assert found == []
