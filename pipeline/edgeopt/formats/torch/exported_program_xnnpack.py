"""Exported programs that were quantized for XNNPACK: their operators come in patterns that it can fuse."""

from typing import ClassVar

from edgeopt.plugin.format import Format


class ExportedProgramXnnpack(Format):
    """An exported program of which only an ExecuTorch program can be made."""

    title: ClassVar[str] = "a torch exported program, quantized for XNNPACK (.pt2)"
