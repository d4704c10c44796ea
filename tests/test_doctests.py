"""The examples in the docstrings of the six files are true, run from the repository's root as a reader would."""

import doctest
import importlib
from pathlib import Path

import pytest
from conftest import FILES, ROOT

WITH_EXAMPLES = [name for name in FILES if ">>>" in (ROOT / name).read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(Path(name).stem))
    assert result.failed == 0 and result.attempted > 0


def test_most_files_have_examples():
    assert len(WITH_EXAMPLES) >= 4 and {"distributions.py", "trie.py", "metrics.py"} <= set(
        WITH_EXAMPLES
    )
