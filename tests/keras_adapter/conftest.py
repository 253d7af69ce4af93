"""Every case of Keras starts from the same random numbers."""

import pytest


@pytest.fixture(autouse=True)
def _the_same_start():
    import keras  # here, since other tests' pytest reads this file too, and Keras' backend is chosen once

    keras.utils.set_random_seed(0)
