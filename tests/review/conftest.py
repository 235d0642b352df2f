"""One review that answers, and somebody who has joined, for each file of tests."""

import pytest
from sample_reviews import HOSTILE, digits_of, review_of, served


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(review_of(digits_of(names=HOSTILE), tmp_path_factory.mktemp("site"))) as answering:
        yield answering


@pytest.fixture(scope="module")
def ann(site):
    return site.visitor("ann")
