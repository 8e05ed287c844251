"""The kit as a Zephyr module and as an Arduino library: a few files around the same sources, never copies.

The folder of the kit is both. Zephyr finds ``zephyr/module.yml`` [1]; the Arduino IDE finds
``library.properties``, and compiles ``src``, whose files include those of the folder above [2].

1. https://docs.zephyrproject.org/latest/develop/modules.html
2. https://arduino.github.io/arduino-cli/latest/library-specification/
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.publish.kit.rendering import render

FORMS = {
    "zephyr/module.yml": "module.yml",
    "zephyr/Kconfig": "Kconfig",
    "zephyr/CMakeLists.txt": "zephyr.cmake",
    "zephyr/check/CMakeLists.txt": "check.cmake",
    "zephyr/check/prj.conf": "prj.conf",
    "library.properties": "library.properties",
    "src/{p}.h": "library.h",
    "src/{p}_check.cpp": "check.cpp",
    "examples/Check/Check.ino": "Check.ino",
}
"""Files of the forms, with their templates in ``templates/forms``."""
VERSION = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){1,2}")
"""The versions that a library of Arduino's library manager may have."""
NO_VERSION = "0.0.0"


def write_forms(folder: Path, sources: Sequence[str], values: dict[str, Any]) -> list[Path]:
    """Write the files of both forms to the folder of the kit.

    ``sources``: names of its C sources. ``values``: those of its templates.
    """
    prefix, version = values["p"], values["contract"].version
    files = {target.format(p=prefix): (template, "") for target, template in FORMS.items()}
    files |= {f"src/{prefix}_{source}": ("source.c", source) for source in sources}
    given = values | {"library_version": version if VERSION.fullmatch(version) else NO_VERSION}
    written = []
    for target, (template, source) in files.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(f"forms/{template}", **given, source=source), "utf-8", newline="\n")
        written.append(path)
    return written
