"""Messages of TensorFlow's native code that say nothing about a failure, and would stand in for its cause.

Whenever TensorFlow is imported, it says on stderr which processor and GPUs it found. ``TF_CPP_MIN_LOG_LEVEL``
has no effect on that: it applies only after the log of absl has been initialized. Workers and agents keep
what they print, and show the end of it as the reason of a failure.
"""

import re
from collections.abc import Iterable

_CHATTER = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\)"
    r"|[IW]\d{4} \d\d:\d\d:[\d.]+ +\d+ \S+:\d+\] "  # absl's level, date, time, thread, file and line
    r"|E\d{4} \d\d:\d\d:[\d.]+ +\d+ cuda_\w+\.cc:\d+\] "  # no GPU, or several libraries for one
    r"|\d{4}-\d\d-\d\d [\d:.]+: [IW] tensorflow/"
    r"|To enable the following instructions: "
    r"|INFO: Created TensorFlow Lite XNNPACK delegate"
)


def without_chatter(lines: Iterable[str]) -> list[str]:
    """The lines that are neither empty nor such messages; errors of TensorFlow stay."""
    return [line for line in lines if line.strip() and not _CHATTER.match(line)]
