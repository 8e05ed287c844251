"""Where a model is to run: the formats that are usual there, and where edgeopt measures them."""

from typing import Any, Literal, NamedTuple, TypeAlias

from edgeopt.config.nearest import nearest
from edgeopt.devices.device import HOST
from edgeopt.errors import UsageError
from edgeopt.results import Target

Kind: TypeAlias = Literal["phone", "pi", "mcu"]
MCU = "cortex-m"
"""The device with the runtime of microcontrollers."""


class Goal(NamedTuple):
    """A kind of device: its formats, the options of its int8 files, and the device to measure on."""

    formats: tuple[str, ...]
    target: Target
    int8: str | dict[str, Any] = "int8"
    device: str | None = None
    """The device to measure on, if it is set up; others are measured on this machine."""
    only_int8: bool = False


GOALS: dict[str, Goal] = {
    "phone": Goal(
        ("tflite", "executorch"),
        Target(
            title="a phone",
            device="android-adb",
            stand_in=HOST,
            hint="with a phone attached by adb, add --device android-adb",
        ),
    ),
    "pi": Goal(
        ("tflite", "onnx"),
        Target(
            title="a Raspberry Pi",
            device="raspberry-pi-4",
            stand_in=HOST,
            hint="for a board that is reached over ssh, see docs/devices/ssh.md",
        ),
    ),
    "mcu": Goal(
        ("tflite",),
        Target(
            title="a microcontroller",
            device=MCU,
            stand_in=HOST,
            hint="edgeopt devices setup cortex-m adds the runtime of boards; then repeat this",
        ),
        {"scheme": "int8", "io": "int8"},
        MCU,
        only_int8=True,
    ),
}


def goal_of(name: str) -> Goal:
    """The goal with this name.

    Raises:
        UsageError: there is none.
    """
    if name not in GOALS:
        raise UsageError(
            f"--for {name}: no such kind of device{nearest(name, GOALS)}", fix=f"one of {', '.join(GOALS)}"
        )
    return GOALS[name]
