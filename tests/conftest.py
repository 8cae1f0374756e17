"""How tests are dealt to the processes of a run: a file at a time, and what waits more than it computes in one of them."""

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("scenarios", "dags")
"""Packages that start servers for all their files: a second process would start them a second time."""


def pytest_ignore_collect(collection_path, config):
    """tests/system only when it is named: it needs PostgreSQL and root."""
    named = any("system" in Path(argument).parts for argument in config.args)
    return True if collection_path == config.rootpath / "tests/system" and not named else None


class ByFile(LoadScopeScheduling):
    """Deals out a file at a time, or a package at a time."""

    def _split_scope(self, nodeid):
        file = nodeid.split("::", 1)[0]
        package = file.split("/")[1]
        return package if package in TOGETHER else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "scenarios" not in item.path.parts)  # the longest of them goes first
