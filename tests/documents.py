"""The commands in the documents, from blocks and from sentences."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "commands.md"})
"""Without the reference of the commands, which is generated from them."""
INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)
FENCED = re.compile(r"^```(?:sh|bash|console|yaml|)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(edgeopt [a-z][^`]*)`")
CHECKED = ("edgeopt", "make", "pip", "python", ".venv/bin/python", ".venv/bin/edgeopt")
STOPS = ("|", "||", "&&", ";", ">", ">>", "<", "2>", "&", "then", "do")


class Written(NamedTuple):
    """A command of a document."""

    path: Path
    line: int
    words: tuple[str, ...]
    is_mention: bool
    """Whether it is named in a sentence, where it may be a part of a command."""

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {' '.join(self.words)}"


def written() -> Iterator[Written]:
    """The commands of all documents, from blocks and from sentences."""
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        places = [(match.start(1), match[1], False) for match in FENCED.finditer(text)]
        places += [(match.start(), match[0], False) for match in INDENTED.finditer(text)]
        places += [(match.start(1), " ".join(match[1].split()), True) for match in INLINE.finditer(text)]
        for start, block, is_mention in sorted(places):
            joined = block.replace("\\\n", "  ")
            for number, line in enumerate(joined.split("\n")):
                for words in commands(line):
                    yield Written(path, text.count("\n", 0, start) + 1 + number, words, is_mention)


def commands(line: str) -> Iterator[tuple[str, ...]]:
    """The checked commands of a line of a shell, or of a YAML file that contains one."""
    shell = re.sub(r"^\s*(?:- |run: |\$ |@)*", "", line)
    shell = re.sub(r"\[(--[^\]]*)\]", r"\1", shell)  # a synopsis
    try:
        words = shlex.split(shell, comments=True)
    except ValueError:  # a sentence with an apostrophe
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word in STOPS:
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command.pop(0)
            if command and command[0] in CHECKED:
                yield tuple(command)
            command = []
        else:
            command.append(word)
