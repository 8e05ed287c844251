"""What TensorFlow prints when it is imported does not stand in for the cause of a failure."""

from pathlib import Path

from edgeopt.config.chatter import without_chatter
from edgeopt.config.text import log_tail

CHATTER = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1796025463.353179     821 port.cc:153] oneDNN custom operations are on. You may see
I0000 00:00:1796025463.353501     821 cudart_stub.cc:31] Could not find cuda drivers on your machine
I0000 00:00:1796025463.949756     821 cpu_feature_guard.cc:227] This TensorFlow binary is optimized
To enable the following instructions: AVX2 AVX512F, in other operations, rebuild TensorFlow
E0000 00:00:1796025501.161400     821 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error
2026-11-30 08:01:02.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.

"""
ERRORS = """E0000 00:00:1796025501.161400     821 graph_executor.cc:17] node 'conv' has an unknown type
2026-11-30 08:01:02.123456: F tensorflow/core/framework/tensor.cc:733] Check failed: 1 == ndims (2)
ValueError: no such layer"""


def test_errors_are_shown_and_chatter_is_not(tmp_path: Path) -> None:
    log = tmp_path / "stage.log"
    log.write_text(CHATTER + ERRORS + "\n" + CHATTER)
    assert log_tail(log) == "\n".join(f"  | {line}" for line in ERRORS.splitlines())
    log.write_text(CHATTER)
    assert log_tail(log) == "" and without_chatter(CHATTER.splitlines()) == []
