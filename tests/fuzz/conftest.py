"""Count how many cases each test tried; the summary at the end says it."""

import pytest
from cases import TRIED


@pytest.fixture(autouse=True)
def cases_counted(request):
    before = TRIED.copy()
    yield
    request.node.user_properties += [("fuzz", [*key, number]) for key, number in (TRIED - before).items()]
