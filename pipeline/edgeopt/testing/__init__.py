"""Conformance tests for plug-ins, and small models to test with.

    from edgeopt.testing import Workshop, cases

    @pytest.fixture(scope="session")
    def workshop(tmp_path_factory):
        with Workshop(tmp_path_factory.mktemp("workshop")) as shop:
            yield shop

    @pytest.mark.parametrize("case", cases("my_package"), ids=str)
    def test_conformance(case, workshop):
        case.check(workshop)

`cases` finds every stage, format, runtime, dataset and metric of a distribution. `toys` are misbehaving
stages: they abort, hang, return wrong results. `null_device` is a device that runs no model. The toy models
classify digits, which requires the extra ``data``.
"""

from edgeopt.testing.cases import Case, cases
from edgeopt.testing.conformance.options import Nonconformance
from edgeopt.testing.null import null_device
from edgeopt.testing.workshop import Workshop

__all__ = ["Case", "Nonconformance", "Workshop", "cases", "null_device"]
