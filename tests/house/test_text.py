"""What every file must and must not say: its purpose first, and nothing of one machine or one package index."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.house.checkout import ROOT, files, text

SCRIPTS = [file for file in files() if file.parts[0] == ".ci" or file.name in {"Makefile", ".airflowignore"}]
SCRIPTS += [file for file in files() if file.suffix in {".sh", ".service", ".timer", ".yaml", ".yml"}]

# Written in two halves, so that this file does not name what it forbids.
INDEX = re.compile(
    r"python" r"hosted\.org|pypi\." r"org|registry\.npm" r"js|index[-_]url[\"' ]*[=:][\"' ]*\w+://", re.IGNORECASE
)


@pytest.mark.parametrize("file", [file for file in files() if file.suffix == ".py" and text(file)], ids=str)
def test_a_module_says_first_what_it_owns(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(text(file)))
    assert docstring, "no module docstring"
    assert text(file).startswith(('"""', 'r"""')), "something stands before the docstring"
    first = docstring.splitlines()[0]
    assert len(first.split()) >= 3, f"says too little: {first!r}"


@pytest.mark.parametrize("file", SCRIPTS, ids=str)
def test_a_script_says_first_what_it_is_for(file: Path) -> None:
    lines = [line for line in text(file).splitlines() if not line.startswith("#!")]
    assert re.match(r"# \w+( \S+){2,}", lines[0]), f"the first line tells nothing: {lines[0]!r}"


@pytest.mark.parametrize("file", [file for file in files() if file.suffix == ".md"], ids=str)
def test_a_page_has_a_title(file: Path) -> None:
    assert text(file).startswith("# ")


@pytest.mark.parametrize("file", [file for file in files() if file.suffix not in {".png", ".avro"}], ids=str)
def test_no_file_names_an_index_or_a_place_of_this_machine(file: Path) -> None:
    content = text(file)
    assert not INDEX.search(content), "a package index's address: the user's own settings say where packages come from"
    for place in {str(ROOT), str(Path.home()), sys.prefix}:
        assert f"{place}/" not in content, "a path that only this machine has"
