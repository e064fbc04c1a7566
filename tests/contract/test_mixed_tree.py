"""A user points ckptwatch at a tree in which every family has written: it understands what is there, and touches nothing."""

import pytest

from tests.formats_page import own_formats, suites
from tests.support import Project, tree


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Every family's checkpoint, each at another depth; format → its path below the root."""
    project = Project(tmp_path_factory.mktemp("mixed"))
    where = {}
    for number, format_ in enumerate(own_formats()):
        directory = project.root.joinpath(*[f"level{n}" for n in range(number % 4)], f"by_{format_.name}")
        directory.mkdir(parents=True)
        path = suites()[format_.name]().write(directory)
        where[format_.name] = str(path.relative_to(project.root))
    project.write(runs=[], recipes={})
    before = tree(project.root)
    assert project.cli("run", "--once", stub=False).returncode == 0
    return project, where, before


@pytest.mark.parametrize("name", [f.name for f in own_formats()])
def test_each_is_found_whole_under_its_own_format_and_nothing_beside_it(mixed, name):
    project, where, _ = mixed
    found = {c["path"]: c for c in recorded(project) if f"/by_{name}/" in f"/{c['path']}/"}
    assert list(found) == [where[name]]
    assert (found[where[name]]["format"], found[where[name]]["state"]) == (name, "complete"), found


def test_the_whole_tree_is_as_it_was(mixed):
    project, _, before = mixed
    assert tree(project.root) == before


def test_a_second_look_finds_nothing_new(mixed):
    project, _, _ = mixed
    before = project.history()
    assert project.cli("run", "--once", stub=False).returncode == 0
    assert [e for e in project.history()[len(before):] if e[0] in ("found", "rewritten", "incomplete", "touched")] == []


def recorded(project):
    from ckptwatch.store import checkpoints, runs

    with project.reading() as conn:
        return [{"path": str(c.path.relative_to(project.root)), "format": c.format, "state": str(c.state)}
                for run in runs.all_runs(conn) for c in checkpoints.of_run(conn, run.id)]
