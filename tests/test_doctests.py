"""Examples in docstrings are run: an example that lies is worse than none."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("featurestore", "scoring", "streams", "livevalue", "tests.links")


def _modules() -> list[str]:
    names = []
    for package in PACKAGES:
        root = importlib.import_module(package)
        names.append(package)
        paths = getattr(root, "__path__", [])
        names += [found.name for found in pkgutil.walk_packages(paths, f"{package}.")]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", _modules())
def test_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
