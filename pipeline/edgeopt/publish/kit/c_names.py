"""Names and text that are safe in C code, in C comments and as file names."""

import hashlib
import re
import unicodedata

LONGEST = 40
"""Characters of an identifier: C99 guarantees 63 significant ones, and every name gets a suffix."""
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
"""Keywords of C99 and C++17, and the reserved names ``main`` and ``std``."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Device names that Windows reserves, with any suffix."""


def identifier(name: str) -> str:
    """A lower-case C and C++ identifier for any name.

    Names of letters, digits and punctuation stay readable. Names that are too long, or have letters that are
    not ASCII, get a hash that keeps them distinct.
    """
    ascii_only = _ascii(name)
    slug = re.sub(r"[^a-z0-9]+", "_", ascii_only.lower()).strip("_")
    lost = any(char.isalnum() for char in name if not char.isascii()) and not _same_letters(name, ascii_only)
    if lost or len(slug) > LONGEST:
        slug = f"{slug[: LONGEST - 9].rstrip('_')}_{_hash(name)}".lstrip("_")
    if not slug or slug[0].isdigit() or slug in _KEYWORDS:
        slug = f"model_{slug}".rstrip("_")
    return slug


def file_name(name: str) -> str:
    """A file name without suffix that every file system accepts, for any name."""
    ascii_only = _ascii(name)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-.")
    slug = re.sub(r"\.{2,}", ".", slug)
    lost = any(char.isalnum() for char in name if not char.isascii()) and not _same_letters(name, ascii_only)
    if lost or len(slug) > LONGEST_FILE:
        slug = f"{slug[: LONGEST_FILE - 9].rstrip('-.')}-{_hash(name)}".lstrip("-")
    if not slug or _RESERVED.fullmatch(slug):
        slug = f"model-{slug}".rstrip("-")
    return slug


def one_line(text: str) -> str:
    """Text without line breaks and control characters."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def comment(text: str) -> str:
    """Text that is safe inside a C comment: it neither ends the comment nor continues the line."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in one_line(text)[:200])
    return re.sub(r"\?(?=\?)", "? ", plain.replace("\\", "/").replace("*/", "* /").replace("/*", "/ *"))


def string(text: str) -> str:
    """A C string literal in UTF-8, with three-digit octal escapes, and without trigraphs."""
    chars = []
    for byte in text.encode("utf-8", "replace"):
        char = chr(byte)
        if char in '"\\?':
            chars.append(f"\\{char}")
        else:
            chars.append(char if " " <= char <= "~" else f"\\{byte:03o}")
    return f'"{"".join(chars)}"'


def _ascii(name: str) -> str:
    """The ASCII form of a name: accents are stripped, other non-ASCII characters dropped."""
    return unicodedata.normalize("NFKD", name[:10_000]).encode("ascii", "ignore").decode("ascii")


def _same_letters(name: str, ascii_only: str) -> bool:
    """Whether the ASCII form lost only accents."""
    base = [s for s in unicodedata.normalize("NFKD", name[:10_000]) if not unicodedata.combining(s)]
    return "".join(base) == ascii_only


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
