"""Build the artifacts of a recipe without measuring them: ``build_only.py RECIPE FORMATS STORE``."""

import sys
from pathlib import Path

from edgeopt.commands.plan import plan
from edgeopt.run.build import build
from edgeopt.run.store import Store

if __name__ == "__main__":
    recipe, formats, store = sys.argv[1:]
    made = plan(recipe, overrides=[f"formats=[{formats}]", "gates=[]"])
    builds = build(made, Store(Path(store)), lambda event: None)
    assert all(built.complete for built in builds), [built.failure for built in builds]
