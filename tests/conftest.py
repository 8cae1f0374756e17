"""How tests are dealt to the processes of a run: a file at a time, and what waits more than it computes in one of them."""

import pandas as pd  # noqa: F401 - so that hours with and without a transform can be compacted in one process
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.house.leaks import is_told, leaking

TOGETHER = ("scenarios", "dags")
"""Packages that start servers for all their files: a second process would start them a second time."""


ONLY_WHEN_NAMED = ("tests/system", "tests/deploy/test_machine.py")
"""They need root, and programs of Debian."""


def pytest_ignore_collect(collection_path, config):
    for place in ONLY_WHEN_NAMED:
        if collection_path == config.rootpath / place and not any(place in argument for argument in config.args):
            return True
    return None


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fails a test in whose output a secret stands, or in what programs wrote below its folder."""
    report = yield
    if report.when == "teardown":
        told = [place for place, content in report.sections if is_told(content)]
        folder = item.funcargs.get("tmp_path") if hasattr(item, "funcargs") else None
        if folder is not None and folder.is_dir():
            told += map(str, leaking(folder))
        if told:
            report.outcome = "failed"
            report.longrepr = f"a secret stands in {', '.join(sorted(told))}"
    return report


@pytest.fixture(scope="session", autouse=True)
def no_secret_is_left(tmp_path_factory):
    """The same at the end, of folders that several tests share: the told stories, Airflow, servers."""
    yield
    told = leaking(tmp_path_factory.getbasetemp())
    assert not told, f"a secret stands in {', '.join(map(str, told))}"
