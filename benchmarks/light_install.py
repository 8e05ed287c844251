"""What the base install takes: bytes, packages and seconds, in a new virtual environment.

    python benchmarks/light_install.py [EXTRA...]

Installs this checkout with ``constraints.txt``, with the given extras; by default with none. Bytes are those
of the whole environment, as ``du`` counts them, and packages include pip and setuptools.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("extras", nargs="*", help="extras of edgeopt")
    extras = ",".join(parser.parse_args().extras)
    with tempfile.TemporaryDirectory() as name:
        environment = Path(name, "environment")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
        target = f"{ROOT}[{extras}]" if extras else str(ROOT)
        started = time.monotonic()
        subprocess.run([*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", target], check=True)
        seconds = time.monotonic() - started
        listed = subprocess.run(
            [*pip, "list", "--format", "json"], check=True, stdout=subprocess.PIPE, text=True
        )
        used = subprocess.run(["du", "-sk", environment], check=True, stdout=subprocess.PIPE, text=True)
    kilobytes = int(used.stdout.split()[0])
    shown = f"edgeopt[{extras}]" if extras else "edgeopt"
    print(f"{shown}: {kilobytes / 1024:.0f} MB, {len(json.loads(listed.stdout))} packages, {seconds:.0f} s")


if __name__ == "__main__":
    main()
