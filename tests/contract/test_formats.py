"""What is true of one format stands in that format's room and nowhere else."""

import ast
from typing import get_args

from edgeopt.formats.known import formats
from edgeopt.plugin import Worker
from keyed_texts import PACKAGE, keyed

OWN = ("formats", "stages", "devices/agent/runtimes", "testing/workshop.py")
"""Code that belongs to single formats: the formats, what converts and runs them, and their toys."""


def test_nothing_outside_a_format_is_decided_by_its_name() -> None:
    names = {*formats(), *(suffix for each in formats().values() for suffix in each.suffixes)}
    names -= set(get_args(Worker))  # the name of a framework as well
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE).as_posix()
        if where.startswith(OWN):
            continue
        for constant in keyed(ast.parse(file.read_text("utf-8"))):
            if constant.value in names:
                found.append(f"{where}:{constant.lineno}: {constant.value!r}")
    assert found == []
