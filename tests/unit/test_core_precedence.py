"""Command line before metadata before configuration before defaults; where two disagree, both are named."""

import itertools

import pytest

from ckptwatch.core.precedence import Given, Source, settle

ALL = tuple(Given(source=source, origin=source.name.lower(), value=number)
            for number, source in enumerate(Source, start=10))


@pytest.mark.parametrize("count", range(1, 5))
def test_the_first_source_that_says_something_wins_in_whatever_order_they_come(count):
    for given in itertools.permutations(ALL[-count:]):
        settled = settle("max_samples", given)
        assert (settled.value, settled.source) == (ALL[-count].value, ALL[-count].source)
        assert settled.origin == ALL[-count].origin


def test_none_is_no_value_but_zero_and_false_are():
    given = (Given(source=Source.COMMAND_LINE, origin="--x", value=None),
             Given(source=Source.METADATA, origin="m", value=False),
             Given(source=Source.DEFAULT, origin="default", value=True))
    assert settle("log_samples", given).value is False
    assert settle("n", [Given(source=Source.DEFAULT, origin="default", value=0)]).value == 0


def test_where_nobody_says_anything_there_is_no_value_and_no_origin():
    settled = settle("csv_input", [Given(source=Source.DEFAULT, origin="default", value=None)])
    assert (settled.value, settled.origin, settled.conflict) == (None, "", "")


def test_of_two_values_of_one_source_the_first_counts():
    given = [Given(source=Source.METADATA, origin=f"m{i}", value=i) for i in (1, 2)]
    assert settle("n", given).origin == "m1" and settle("n", given).conflict == ""


def test_a_conflict_names_both_values_and_the_winner():
    conflict = settle("max_samples", ALL[1:]).conflict
    assert conflict == "max_samples: metadata says 11, configuration says 12; 11 counts, from metadata"


def test_a_conflict_is_told_also_where_the_command_line_overrides_both():
    assert settle("n", ALL).conflict.endswith("10 counts, from command_line")


@pytest.mark.parametrize("given", [
    (ALL[0], ALL[1], ALL[3]), (ALL[0], ALL[2], ALL[3]),
    (ALL[1], Given(source=Source.CONFIGURATION, origin="c", value=ALL[1].value)),
])
def test_agreement_and_overriding_on_purpose_are_no_conflict(given):
    assert settle("n", given).conflict == ""


def test_a_conflict_shows_values_as_people_know_them():
    given = (Given(source=Source.METADATA, origin="m", value=("python", "a.py"), shown="python a.py"),
             Given(source=Source.CONFIGURATION, origin="c", value="x" * 1000))
    conflict = settle("command", given).conflict
    assert "m says python a.py," in conflict and len(conflict) < 400


def test_what_looks_the_same_to_people_is_no_conflict():
    given = [Given(source=source, origin="o", value=value, shown="python a.py")
             for source, value in ((Source.METADATA, ("python", "a.py")), (Source.CONFIGURATION, "recipe"))]
    assert settle("command", given).conflict == ""
