"""What a month costs: computed, shown in docs/deploy.md as computed, and asked for by command."""

import subprocess
import sys

import pytest

from deploy import costs
from schemas.settings import Price
from tests.deploy.template import stack, template
from tests.house.checkout import ROOT, text


def usd(posts, machine="t4g.small"):
    return {line.what: line.usd for line in costs.month(posts, machine)}


def test_x_is_paid_by_the_post_and_the_rest_by_the_month():
    few, many = usd(1_000), usd(2_000)
    assert few["X: posts"] == pytest.approx(1_000 * Price().post_usd) == pytest.approx(5)
    grows = {what for what in few if many[what] != few[what]}
    assert grows == {"X: posts", "S3: what 12 such months leave"}
    assert all(many[what] == pytest.approx(2 * few[what]) for what in grows)


def test_the_disks_and_machines_are_those_of_the_template():
    [root] = stack().properties("Machine")["BlockDeviceMappings"]
    assert root["Ebs"]["VolumeSize"] == costs.ROOT_GIB
    assert stack().properties("DataVolume")["Size"] == str(costs.DATA_GIB)
    assert list(costs.MACHINE_USD_PER_HOUR) == template()["Parameters"]["InstanceType"]["AllowedValues"]
    assert usd(0)["machine, t4g.small"] == pytest.approx(12.264)


def test_the_sum_is_the_sum():
    last = costs.table([10_000]).splitlines()[-1]
    assert last == f"| **together** | **{sum(usd(10_000).values()):,.2f}** |"


def test_the_page_shows_what_is_computed():
    assert costs.table() in text("docs/deploy.md"), "put in what `python -m deploy.costs` prints"


def test_the_command_prints_a_column_for_each_number_of_posts():
    done = subprocess.run(
        [sys.executable, "-m", "deploy.costs", "50000", "--machine", "t3.medium"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == costs.table([50_000], "t3.medium")


@pytest.mark.parametrize("wrong", [["many"], ["-5"], ["10", "--machine", "m7g.large"]])
def test_what_is_no_number_or_no_machine_is_refused_in_one_line(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        costs.main(wrong)
    assert "error: argument" in capsys.readouterr().err.splitlines()[-1]
