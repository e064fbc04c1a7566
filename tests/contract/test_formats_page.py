"""docs/formats.md says of every format what the code says, with an example as its trainer writes it."""

import pytest

from tests.formats_page import example_of, own_formats, section, suites, written

NAMES = [f.name for f in own_formats()]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_has_a_conformance_suite(name):
    assert name in suites()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_of_a_format_what_the_code_says(name, tmp_path):
    format_ = next(f for f in own_formats() if f.name == name)
    assert section(format_, example_of(format_, tmp_path)) in written(), "run: python -m tests.formats_page"


def test_the_page_has_no_format_that_is_not_there():
    assert written().count("\nFormat `") == len(NAMES)
