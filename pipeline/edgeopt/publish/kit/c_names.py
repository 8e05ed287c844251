"""Names and text that are safe wherever they end up: in C, in a comment, in a file system."""

import hashlib
import re
import unicodedata

LONGEST = 40
"""Characters of an identifier; C99 promises that 63 are looked at, and each gets something added."""
LONGEST_FILE = 64

_KEYWORDS = frozenset(
    """
    auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile
    while alignas alignof and and_eq asm bitand bitor bool catch class compl const_cast constexpr decltype
    delete dynamic_cast explicit export false friend mutable namespace new noexcept not not_eq nullptr
    operator or or_eq private protected public reinterpret_cast static_assert static_cast template this
    thread_local throw true try typeid typename using virtual wchar_t xor xor_eq main std
    """.split()
)
"""Of C99 and C++17, and two names that a program has already."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, with any suffix."""


def identifier(name: str) -> str:
    """An identifier of C and C++ in lower case, whatever the name is.

    Names of letters, digits and punctuation stay readable. Of one that is too long, or whose letters are not
    ASCII, a hash keeps it apart from others.
    """
    ascii_only = _ascii(name)
    words = re.sub(r"[^a-z0-9]+", "_", ascii_only.lower()).strip("_")
    lost = any(sign.isalnum() for sign in name if not sign.isascii()) and not _same_letters(name, ascii_only)
    if lost or len(words) > LONGEST:
        words = f"{words[: LONGEST - 9].rstrip('_')}_{_hash(name)}".lstrip("_")
    if not words or words[0].isdigit() or words in _KEYWORDS:
        words = f"model_{words}".rstrip("_")
    return words


def file_name(name: str) -> str:
    """A file name without suffix that every file system takes, whatever the name is."""
    ascii_only = _ascii(name)
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-.")
    words = re.sub(r"\.{2,}", ".", words)
    lost = any(sign.isalnum() for sign in name if not sign.isascii()) and not _same_letters(name, ascii_only)
    if lost or len(words) > LONGEST_FILE:
        words = f"{words[: LONGEST_FILE - 9].rstrip('-.')}-{_hash(name)}".lstrip("-")
    if not words or _RESERVED.fullmatch(words):
        words = f"model-{words}".rstrip("-")
    return words


def one_line(text: str) -> str:
    """Text without line breaks and control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))


def comment(text: str) -> str:
    """Text that neither ends a comment of C nor goes on in the next line of the file."""
    plain = "".join(sign if " " <= sign <= "~" else "?" for sign in one_line(text)[:200])
    return re.sub(r"\?(?=\?)", "? ", plain.replace("\\", "/").replace("*/", "* /").replace("/*", "/ *"))


def string(text: str) -> str:
    """A string of C, in UTF-8; no digit or trigraph is taken for part of an escape."""
    signs = []
    for byte in text.encode("utf-8", "replace"):
        sign = chr(byte)
        if sign in '"\\?':
            signs.append(f"\\{sign}")
        else:
            signs.append(sign if " " <= sign <= "~" else f"\\{byte:03o}")
    return f'"{"".join(signs)}"'


def _ascii(name: str) -> str:
    """Letters with accents lose these; what has no ASCII form is left out."""
    return unicodedata.normalize("NFKD", name[:10_000]).encode("ascii", "ignore").decode("ascii")


def _same_letters(name: str, ascii_only: str) -> bool:
    """Whether only accents were lost."""
    base = [s for s in unicodedata.normalize("NFKD", name[:10_000]) if not unicodedata.combining(s)]
    return "".join(base) == ascii_only


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
