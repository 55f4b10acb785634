"""What is compiled once for all tests of this folder."""

import pytest
from everything import kept

from fmnist_keras3.training import trainer as trainer_module


@pytest.fixture(autouse=True, scope="session")
def compiled_once():
    """Let Trainers share the engines of the models that `kept` gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "make_engine", kept.make_engine)
        yield
