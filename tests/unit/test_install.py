"""How missing packages are installed, by where edgeopt came from; and code without NumPy."""

import importlib.metadata
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edgeopt.errors import install

WHEEL = "file:///srv/wheels/edgeopt-0.1.0-py3-none-any.whl"
GIT = "https://git.example.com/team/edgeopt"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///home/me/edgeopt", "dir_info": {"editable": True}}, "pip install '.[keras]'"),
        ({"url": WHEEL, "archive_info": {}}, f"pip install 'edgeopt[keras] @ {WHEEL}'"),
        (
            {"url": GIT, "vcs_info": {"vcs": "git", "commit_id": "1f0b05b"}},
            f"pip install 'edgeopt[keras] @ git+{GIT}@1f0b05b'",
        ),
        (None, "pip install 'edgeopt[keras]'"),  # by its name, from an index
    ],
)
def test_the_command_installs_from_the_same_place(
    monkeypatch: pytest.MonkeyPatch, origin: object, command: str
) -> None:
    record = None if origin is None else json.dumps(origin)
    distribution = SimpleNamespace(read_text=lambda name: {"direct_url.json": record}[name])
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: {"edgeopt": distribution}[name])
    assert install("keras").removeprefix("in a checkout of edgeopt: ") == command


def test_code_without_numpy_is_defined_and_refused_where_it_runs() -> None:
    """With the whole base install: tests/integration/test_pull.py."""
    program = """
from edgeopt.config import absent
absent.NUMERICS = ("no_such_numerics",)
absent.stand_in()
before = absent.installed()
import no_such_numerics as np
from no_such_numerics.typing import NDArray
Floats = NDArray[np.float64] | None
def mean(values: Floats) -> np.float64:
    return np.mean(values)
try:
    mean([1])
except absent.MissingPackageError as error:
    print(error.message, before, absent.installed())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "this needs no_such_numerics, which is not installed False False\n"
