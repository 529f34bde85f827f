"""What several files of the training suite look at."""

import pytest
from runs import EVERYTHING, train_here


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An uninterrupted run with everything that is random switched on."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_here(folder, *EVERYTHING)
    return folder
