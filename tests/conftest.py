"""How tests are dealt to the processes of a run: a file at a time, and what waits more than it computes in one of them."""

import pytest

TOGETHER = ("scenarios", "dags")
"""Packages that start servers for all their files: a second process would start them a second time."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        package, *_ = item.path.relative_to(config.rootpath / "tests").parts
        item.add_marker(pytest.mark.xdist_group(package if package in TOGETHER else item.path.stem))
    items.sort(key=lambda item: "scenarios" not in item.path.parts)  # the longest of them goes first
