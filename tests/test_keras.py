"""The Keras adapter on both backends; Keras has one a process, so each runs keras_adapter/*_cases.py in its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cyclr

CASES = sorted((Path(__file__).parent / "keras_adapter").glob("*_cases.py"))
ADAPTER = Path(cyclr.__file__).parent / "keras"


def process(backend, *command):
    environment = os.environ | {"KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_on_each_backend_all_cases_and_the_examples_in_docstrings_hold(backend):
    done = process(backend, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, CASES), str(ADAPTER))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def imported(prelude, backend="torch"):
    done = process(backend, "-c", f"import sys\n{prelude}\nimport cyclr.keras")
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def installed(version, backend):
    return f"""
from types import SimpleNamespace as Is
sys.modules["keras"] = Is(__version__="{version}", backend=Is(backend=lambda: "{backend}"))
"""


def test_a_backend_that_is_not_installed_is_named():
    assert imported("sys.modules['tensorflow'] = None", "tensorflow").endswith(
        "set KERAS_BACKEND=jax or torch before Keras is imported"
    )


def test_another_backend_is_named():
    assert imported(installed("3.10.0", "tensorflow")) == (
        "ImportError: cyclr.keras runs on Keras' jax and torch backends, got tensorflow; "
        "set KERAS_BACKEND=jax or torch before Keras is imported"
    )
