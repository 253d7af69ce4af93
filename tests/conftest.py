"""What holds for every test: no window opens, threads do not wait for each other, a slow machine fails no property."""

import os

from hypothesis import settings

os.environ["MPLBACKEND"] = "Agg"  # read when matplotlib is first imported, here or in a child process
os.environ["OMP_NUM_THREADS"] = "1"  # nets this small are slower on several cores, and tests run side by side
os.environ.setdefault("KERAS_BACKEND", "torch")  # read when a doctest imports Keras

settings.register_profile("cyclr", deadline=None, max_examples=60)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("cyclr")
