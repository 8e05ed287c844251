"""The small ``tflite-runtime`` of older devices (2.14 and before, numpy 1)."""

from __future__ import annotations

from typing import Any

from edgeopt_agent.tflite import TfliteSession


class Session(TfliteSession):
    requires = ("tflite-runtime",)

    @staticmethod
    def interpreter() -> Any:
        from tflite_runtime.interpreter import Interpreter

        return Interpreter
