"""Exported programs quantized for XNNPACK: quantize and dequantize nodes in the patterns that it fuses."""

from typing import ClassVar

from edgeopt.plugin.format import Format


class ExportedProgramXnnpack(Format):
    """An exported program that can only be lowered to an ExecuTorch program."""

    title: ClassVar[str] = "a torch exported program, quantized for XNNPACK (.pt2)"
