"""What all tests of this folder share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def in_every_module(compiled_once):
    """Compile the models that are kept once; those that a test makes itself are its own."""
