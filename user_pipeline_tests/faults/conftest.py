"""What several faults need."""

from collections.abc import Iterator

import pytest

from user_pipeline_tests.faults.forked import Parent


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """A loaded parent of runs in processes of their own."""
    with Parent.start(tmp_path_factory.mktemp("forked")) as started:
        yield started
