"""A device without a model behind it, for tests of all that stands above a device."""

from edgeopt.devices.device import Device, load_device
from edgeopt.formats.known import artifact_formats
from edgeopt.run.bench import HOST

NAME = "null"


def null_device() -> Device:
    """This machine with the runtime ``null`` for every format: it takes any file and answers at once.

    The outputs are zeros in the shapes of the inputs.
    """
    return load_device(HOST).model_copy(
        update={"name": NAME, "runtimes": dict.fromkeys(artifact_formats(), NAME)}
    )
