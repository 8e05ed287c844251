"""Decoding by a function of the user."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from edgeopt.config.references import Code
from edgeopt.config.text import reason_of
from edgeopt.errors import DataError
from edgeopt.model import Outputs
from edgeopt.plugin import Decoder


class Function(Decoder):
    """Calls ``function(outputs, **arguments)`` with the outputs of the model.

    It gets a dict from the names of the outputs to arrays ``[n, ...]``, and returns what the task reads: such
    a dict, or one array, of the same ``n`` samples. It runs in a process of its own.
    """

    function: Code = Field(description="the function, as module:name")
    arguments: dict[str, Any] = Field({}, description="keyword arguments for the function")

    def apply(self, outputs: Outputs) -> Outputs:
        """What the function returns.

        Raises:
            UsageError: the function cannot be loaded.
            DataError: it raises, or returns something else than arrays of the same number of samples.
        """
        function = self.function.load()
        given = dict(zip(outputs.all_names(), outputs.arrays, strict=True))
        try:
            result = function(given, **self.arguments)
        except (Exception, SystemExit) as error:  # whatever code of the user raises
            raise DataError(f"{self.function.target}: {reason_of(error)}", fix="correct its code") from error
        parts = result if isinstance(result, Mapping) else {"output": result}
        arrays = {str(name): np.asarray(value) for name, value in parts.items()}
        count = len(outputs.arrays[0])
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf" or array.shape[:1] != (count,):
                what = f"{array.dtype} {list(array.shape)}"
                raise DataError(
                    f"{self.function.target} returned {what} as {name!r}, for {count} samples",
                    fix=f"return arrays of numbers whose first axis has {count} entries, by name",
                )
        if not arrays:
            raise DataError(f"{self.function.target} returned no output", fix="return a dict of arrays")
        return Outputs(list(arrays.values()), list(arrays))
