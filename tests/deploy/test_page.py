"""docs/deploy.md and the template speak of the same parameters, resources and outputs."""

import re

from tests.deploy.template import FILE, template
from tests.house.checkout import ROOT, text

PAGE = text("docs/deploy.md")


def first_cells(heading):
    table = re.search(rf"\| {heading} \|.*?\n\n", PAGE, re.DOTALL)[0]
    return [row.split("|")[1:-1] for row in table.splitlines()[2:] if row]


def test_every_parameter_has_its_row_with_its_default():
    declared = template()["Parameters"]
    shown = {name.strip(" `"): default.strip(" `") for name, default, _ in first_cells("parameter")}
    assert shown == {name: str(each.get("Default", "required")) or "none" for name, each in declared.items()}, (
        "a parameter without a default is `required`, an empty default is `none`"
    )


def test_every_resource_has_its_row_or_belongs_to_one():
    named = {name for cells in first_cells("resource") for name in re.findall(r"`(\w+)`", cells[0])}
    resources = template()["Resources"]
    assert named <= resources.keys()
    belong = {"LakeOnlyByTls", "BecomeIngesterOrCompaction", "InstanceProfile", "DataVolumeAttachment", "Notices"}
    tables = {name for name, each in resources.items() if each["Type"] == "AWS::Glue::Table"}
    assert len(tables) == 10
    assert named | belong | tables == resources.keys()


def test_every_output_that_the_page_names_exists_and_commands_are_all_named():
    named = set(re.findall(r"\*\*([A-Z][a-z]+[A-Z]\w+)\*\*", PAGE)) - {"CompactionRole"}
    outputs = template()["Outputs"]
    assert named <= outputs.keys()
    assert {name for name, each in outputs.items() if re.match(r"\d\. ", each["Description"])} - {"AskAthena"} <= named


def test_the_template_can_be_sent_as_it_is():
    """AWS takes 51,200 bytes in a request; larger ones want a bucket first."""
    assert (ROOT / FILE).stat().st_size < 51_200
