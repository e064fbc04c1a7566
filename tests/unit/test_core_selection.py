"""Which checkpoint of a directory is meant: best, else last, else newest; a link to nothing is never passed over."""

import pytest

from ckptwatch.core.selection import Seen, choose_checkpoint

OLD, NEW = Seen(name="epoch01.ckpt", modified=1.0), Seen(name="epoch02.ckpt", modified=2.0)
BEST = Seen(name="best.ckpt", link="epoch01.ckpt", modified=1.0)
LAST = Seen(name="last.ckpt", link="epoch02.ckpt", modified=2.0)


@pytest.mark.parametrize(("seen", "name"), [
    ((NEW, LAST, BEST, OLD), "best.ckpt"),
    ((NEW, LAST, OLD), "last.ckpt"),
    ((NEW, OLD), "epoch02.ckpt"),
    ((OLD,), "epoch01.ckpt"),
    ((NEW, Seen(name="last.ckpt", modified=0.0)), "last.ckpt"),  # a trainer that copies instead of linking
])
def test_best_comes_before_last_and_last_before_the_newest(seen, name):
    assert choose_checkpoint(seen).name == name
    assert choose_checkpoint(tuple(reversed(seen))).name == name


def test_what_was_chosen_says_why():
    assert choose_checkpoint((BEST, OLD)).why == "best.ckpt, a link to epoch01.ckpt"
    assert "newest of 2" in choose_checkpoint((OLD, NEW)).why
    assert "no best.ckpt and no last.ckpt" in choose_checkpoint((OLD, NEW)).why


def test_of_equally_new_ones_the_choice_does_not_depend_on_the_order_of_the_directory():
    twins = [Seen(name=f"e{i}.ckpt", modified=5.0) for i in (3, 1, 2)]
    orders = (twins, twins[::-1], sorted(twins, key=lambda s: s.name))
    assert {choose_checkpoint(order).name for order in orders} == {"e3.ckpt"}


def test_a_best_that_leads_nowhere_is_told_although_there_is_a_last():
    choice = choose_checkpoint((Seen(name="best.ckpt", link="gone.ckpt", there=False), LAST, NEW))
    assert (choice.name, choice.problem) == ("", "best.ckpt points to gone.ckpt, which does not exist")
    assert "epoch02.ckpt" in choice.hint


def test_a_last_that_leads_nowhere_matters_only_without_a_best():
    dangling = Seen(name="last.ckpt", link="gone.ckpt", there=False)
    assert choose_checkpoint((BEST, dangling, OLD)).name == "best.ckpt"
    assert "last.ckpt points to gone.ckpt" in choose_checkpoint((dangling, OLD)).problem


def test_only_links_to_nothing_leave_nothing_to_name():
    choice = choose_checkpoint((Seen(name="best.ckpt", link="gone.ckpt", there=False),))
    assert "no other checkpoint" in choice.hint


@pytest.mark.parametrize("seen", [(), (Seen(name="notes.txt"),), (Seen(name=".tmp-e1.ckpt"),),
                                  (Seen(name="e1.ckpt", link="x", there=False),)])
def test_without_a_checkpoint_it_says_what_was_looked_for(seen):
    assert choose_checkpoint(seen).problem == "no checkpoint in it: looked for best.ckpt, last.ckpt and *.ckpt"
