"""Finds wordings that the field has a better term for: `make lint` runs it on all text of the repository."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".py", ".md", ".toml", ".yaml", ".yml", ".j2", ".js", ".html", "Makefile", "run")

WORDS = {
    r"(?:cannot|can|could not|to) be had": "is (not) available, can(not) be produced",
    r"rubbish": "malformed, invalid",
    r"held against": "compared with",
    r"no matter of": "not the cause",
    r"for want of": "without, lacking",
    r"of no use": "unusable",
    r"dearest": "most expensive",
    r"it shall": "must, is to",
    r"(?:carr(?:y|ies)|carried)[ _](?:\w+ )?out": "run, execute, perform",
    r"asks who": "requires authentication",
    r"who is there": "authentication",
    r"what it comes to": "the result, the total",
    r"goes? along with": "accompanies, is sent with",
    r"\w+ tells? (?:whether|what|how|where|which)": "reports, states, returns",
    r"lets? \w+ go in peace": "shuts down gracefully",
    r"mend(?:s|ed)?": "fix, repair",
    r"ledger": "breakdown",
    r"untouched": "original, unchanged",
    r"share of (?:the )?(?:multiplications|MACs|samples|labels|weights)": "fraction of",
    r"where it lies": "its path, its location",
    r"here lies|lies here": "contains, is defined here",
}
"""Regular expression of whole words, any case -> what to write instead."""
ANY = re.compile("|".join(WORDS), re.IGNORECASE)


def findings(text: str) -> list[tuple[int, str, str]]:
    """Line number, the wording found and the better one, of each wording in a text."""
    if not ANY.search(text):
        return []
    return [
        (text.count("\n", 0, match.start()) + 1, match[0], better)
        for pattern, better in WORDS.items()
        for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", text, re.IGNORECASE)
    ]


def main() -> int:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in sorted(filter(None, listing.stdout.split("\0")))]
    count = 0
    for path in paths:
        if not path.name.endswith(SUFFIXES) or path == Path(__file__).resolve() or not path.is_file():
            continue
        for line, wording, better in findings(path.read_text("utf-8")):
            print(f"{path.relative_to(ROOT)}:{line}: {wording!r}: write {better}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
