"""As any author of plug-ins would test them."""

from collections.abc import Iterator

import pytest

from edgeopt.testing import Case, Workshop, cases


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("workshop")) as made:
        yield made


@pytest.mark.parametrize("case", cases("edgeopt_layers"), ids=str)
def test_conformance(case: Case, workshop: Workshop) -> None:
    case.check(workshop)
