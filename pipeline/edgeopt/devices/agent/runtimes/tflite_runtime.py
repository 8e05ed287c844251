"""The interpreter-only package ``tflite-runtime`` of older devices (up to 2.14, numpy 1)."""

from __future__ import annotations

from typing import Any

from edgeopt_agent.tflite import TfliteSession


class Session(TfliteSession):
    requires = ("tflite-runtime",)

    @staticmethod
    def interpreter() -> Any:
        from tflite_runtime.interpreter import Interpreter

        return Interpreter
