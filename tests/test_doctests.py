"""The examples in docstrings are true, run from the repository's root as a reader would run them.

These are the examples of the six files, and of the extras that have any.
"""

import doctest
import importlib
import sys
from pathlib import Path

import pytest
from conftest import FILES, ROOT

EXTRAS = ROOT / "tests" / "extras"
sys.path.insert(0, str(EXTRAS))


def with_examples(paths: list[Path]) -> list[str]:
    """The names of the modules that have an example in a docstring."""
    return [path.stem for path in paths if ">>>" in path.read_text()]


SIX = with_examples([ROOT / name for name in FILES])


@pytest.mark.parametrize("module", SIX + with_examples(sorted(EXTRAS.glob("*.py"))))
def test_docstring_examples_are_true(module, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0 and result.attempted > 0


def test_most_of_the_six_files_have_examples():
    assert len(SIX) >= 4
    assert {"distributions", "trie", "metrics"} <= set(SIX)
