"""Toys, and the tests that every plug-in passes: for authors of plug-ins, and for edgeopt itself.

    from edgeopt.testing import Workshop, cases

    @pytest.fixture(scope="session")
    def workshop(tmp_path_factory):
        with Workshop(tmp_path_factory.mktemp("workshop")) as made:
            yield made

    @pytest.mark.parametrize("case", cases("my_package"), ids=str)
    def test_conformance(case, workshop):
        case.check(workshop)

`cases` finds every stage, format, runtime, dataset and metric of a distribution. `toys` are stages that
abort, hang, lie and the like; `null_device` answers without a model. The toys are digits: ``edgeopt[data]``.
"""

from edgeopt.testing.cases import Case, cases
from edgeopt.testing.conformance.options import Nonconformance
from edgeopt.testing.null import null_device
from edgeopt.testing.workshop import Workshop

__all__ = ["Case", "Nonconformance", "Workshop", "cases", "null_device"]
