"""A device that runs no model, to test everything above the device."""

from edgeopt.devices.device import HOST, Device, load_device
from edgeopt.formats.known import artifact_formats

NAME = "null"


def null_device() -> Device:
    """This machine with the runtime ``null`` for every format, which accepts any file and returns at once.

    Its outputs are zeros with the shapes of the inputs.
    """
    return load_device(HOST).model_copy(
        update={"name": NAME, "runtimes": dict.fromkeys(artifact_formats(), NAME)}
    )
