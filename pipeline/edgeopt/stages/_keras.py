"""The options of all stages that load a Keras model."""

from typing import Any

from pydantic import Field

from edgeopt.config.files import file_digest
from edgeopt.plugin import ExistingPath, Stage


class KerasStage(Stage):
    """A stage that loads a Keras model, which may have layers of its author's."""

    trust: bool = Field(False, description="load models with Lambda layers, which run Python code")
    code: ExistingPath | None = Field(None, description="Python file with the custom layers of the model")

    def key_parts(self) -> dict[str, str]:
        """The digest of the custom layers."""
        return super().key_parts() | ({} if self.code is None else {"code": file_digest(self.code)})

    def options(self) -> dict[str, Any]:
        """The options without the path of the code, which its digest identifies."""
        options = super().options()
        del options["code"]
        return options
