"""A store with a small sweep in it, shared by the tests that only read."""

from __future__ import annotations

import pytest

from harness.store.store import Store
from reports.board.board import BoardTable, build, load_board
from tests.reports.making import filled_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def table(store: Store) -> BoardTable:
    return build(load_board("default", []), store.records()[0], store)
