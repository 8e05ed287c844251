"""A cluster of two nodes on this machine, a shipped recipe on it, and what ran where: ``make cluster-demo``.

    python deploy/cluster_demo.py [RECIPE] [OUT]

The nodes have loopback addresses of their own, as two machines would have. On two machines, the same commands
are typed by hand: see docs/cluster.md.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EDGEOPT = [sys.executable, "-m", "edgeopt"]
HEAD, PORT = "127.0.0.2", 26379
NODES = {
    "a": ["--head", "--address", HEAD, "--port", str(PORT)],
    "b": [f"{HEAD}:{PORT}", "--address", "127.0.0.3"],
}
FORMATS = ("tflite", "onnx")


@contextlib.contextmanager
def node(name: str) -> Iterator[None]:
    """A node of the cluster; returns once it is ready."""
    command = [*EDGEOPT, "node", *NODES[name], "--name", name, "--cpus", "2"]
    print("$ edgeopt", *command[3:], flush=True)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        ready = process.stderr.readline()
        if "Ctrl-C" not in ready:
            sys.exit(ready + process.stderr.read())
        yield
    finally:
        process.terminate()
        process.communicate()


def main() -> None:
    """Start the nodes, run the recipe, and print its notes on machines."""
    recipe = sys.argv[1] if len(sys.argv) > 1 else "digits-keras"
    out = Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "artifacts" / "runs" / "cluster-demo")
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with contextlib.ExitStack() as cleanup:
        # A store of its own, or nothing would be left to build the second time.
        store = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="edgeopt-demo-"))
        for name in NODES:
            cleanup.enter_context(node(name))
        command = ["optimize", recipe, "--on", f"ray:{HEAD}:{PORT}", "--store", store, "--out", str(out)]
        command += [word for each in FORMATS for word in ("--format", each)]
        print("$ edgeopt", *command, flush=True)
        code = subprocess.run([*EDGEOPT, *command], check=False).returncode
    notes = json.loads((out / "report.json").read_bytes())["run"]["notes"] if code in (0, 1) else []
    print("\n".join(note for note in notes if note.startswith(tuple(f"{name} ran " for name in NODES))))
    sys.exit(code)


if __name__ == "__main__":
    main()
