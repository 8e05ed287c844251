"""LiteRT (``ai-edge-litert``), with the XNNPACK delegate for the operators that it supports."""

from __future__ import annotations

from typing import Any

from edgeopt_agent.tflite import TfliteSession


class Session(TfliteSession):
    requires = ("ai-edge-litert",)

    @staticmethod
    def interpreter() -> Any:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter
