"""Build a recipe's artifacts and measure nothing: ``build_only.py RECIPE FORMATS STORE``."""

import sys
from pathlib import Path

from edgeopt.build import build
from edgeopt.pipeline import plan
from edgeopt.store import Store

if __name__ == "__main__":
    recipe, formats, store = sys.argv[1:]
    made = plan(recipe, overrides=[f"formats=[{formats}]", "gates=[]"])
    builds = build(made, Store(Path(store)), lambda event: None)
    assert all(built.complete for built in builds), [built.failure for built in builds]
