"""What edgeopt guessed when it wrote a recipe: every run of it says so until somebody has confirmed it."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.recipe.document import Guess
from edgeopt.results import GUESSES


def drop_stated(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Remove the guesses from a parsed recipe whose keys the command states: these are guesses no more."""
    guessed = data.get("guessed")
    if not isinstance(guessed, dict):
        return
    stated = [f"{assignment.partition('=')[0]}." for assignment in overrides]
    left = {
        key: how for key, how in guessed.items() if not any(each.startswith(f"{key}.") for each in stated)
    }
    if left != guessed:
        data["guessed"] = left


def notes_of(guessed: Mapping[Guess, str]) -> tuple[str, ...]:
    """A note for each key that is guessed."""
    return tuple(f"{GUESSES[key]} {how}" for key, how in guessed.items())
