"""Damaged files for every parser: the property tests with new examples in each round, for some minutes.

    python benchmarks/fuzz.py [--minutes 15] [--seed 0] [--examples 1000] [-k EXPRESSION]

The tests of every run use the same examples; this looks for what those miss. A finding is printed with the
smallest example that shows it, and with the command that repeats it; the exit code is then 1.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "property"


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each round adds one")
    parser.add_argument("--examples", type=int, default=1000, help="per test and round")
    parser.add_argument("-k", dest="only", default="", help="only these tests, as for pytest")
    given = parser.parse_args()
    end = time.monotonic() + given.minutes * 60
    tests, findings, seed = 0, 0, given.seed
    while time.monotonic() < end:
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(os.cpu_count() or 1), str(TESTS)]
        command += [f"--hypothesis-seed={seed}", *(["-k", given.only] if given.only else [])]
        environment = os.environ | {"EDGEOPT_EXAMPLES": str(given.examples)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            sys.exit(done.stdout + done.stderr)
        tests += sum(int(count) for count in re.findall(r"(\d+) (?:passed|failed)", done.stdout))
        if done.returncode == 1:
            findings += int(re.findall(r"(\d+) failed", done.stdout)[-1])
            print(done.stdout)
            print(f"again: EDGEOPT_EXAMPLES={given.examples} {' '.join(command)}")
        print(f"seed {seed}: {tests * given.examples:,} examples, {findings} findings", flush=True)
        seed += 1
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
