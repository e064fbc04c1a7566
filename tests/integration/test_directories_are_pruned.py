"""From a directory or a set on disk to the trash and back, through the daemon itself; and what stops it."""

import pytest

from tests.support import save, tree

KEEP_LAST = {"evaluate": None, "rank": None, "keep": {"last": 1}}


def step(project, name, **files):
    """A step's directory in a layout of nobody's."""
    for part, content in {"model.pt": None, "state/optimizer.pt": None, "notes.txt": b"x", **files}.items():
        path = project.root / name / part
        if content is None:
            save(path, {"w": 1})
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def nanochat(project, number):
    for name in ("model", "optim", "meta"):
        path = project.root / "chat" / (f"{name}_{number:06d}" + (".json" if name == "meta" else "_rank0.pt"
                                                                  if name == "optim" else ".pt"))
        if name == "meta":
            path.write_text('{"step": 1}')
        else:
            save(path, {"w": 1})


def test_old_directories_go_into_the_trash_and_come_back(project):
    project.run_rule(**KEEP_LAST)
    for number in (1, 2, 3):
        step(project, f"a/step_{number}")
    before = tree(project.root)
    assert project.once() == 0
    assert sorted(p.name for p in (project.root / "a").iterdir()) == ["step_3"]
    assert project.cli("restore", "a@1").returncode == 0
    assert {k: v for k, v in tree(project.root).items() if k.startswith("a/step_1")} == {
        k: v for k, v in before.items() if k.startswith("a/step_1")}


def test_old_sets_go_into_the_trash_as_one(project):
    project.run_rule(**KEEP_LAST)
    for number in (100, 200, 300):
        nanochat(project, number)
    assert project.once() == 0
    assert sorted(p.name for p in (project.root / "chat").iterdir()) == [
        "meta_000300.json", "model_000300.pt", "optim_000300_rank0.pt"]
    assert project.cli("restore", "chat@100").returncode == 0
    assert len(list((project.root / "chat").iterdir())) == 6


def test_the_last_whole_one_stays_when_the_newest_is_damaged_on_disk(project):
    """What the record says of the others is held against the disk before each removal."""
    project.run_rule(**KEEP_LAST)
    for number in (1, 2):
        step(project, f"a/step_{number}")
    assert project.once(dry_run=True) == 0
    (project.root / "a/step_2/model.pt").write_bytes(b"cut off")
    assert project.once() == 0
    assert (project.root / "a/step_1/model.pt").exists()


@pytest.mark.parametrize("target", ["a/step_1", "a/step_1/model.pt"])
def test_a_link_from_another_run_keeps_what_it_leads_to(project, target):
    project.run_rule(**KEEP_LAST)
    for number in (1, 2, 3):
        step(project, f"a/step_{number}")
    (project.root / "paper").mkdir()
    (project.root / "paper/init").symlink_to(project.root / target)
    assert project.once() == 0
    assert sorted(p.name for p in (project.root / "a").iterdir()) == ["step_1", "step_3"]


def test_the_newest_of_each_model_in_a_directory_stays(project):
    project.run_rule(**KEEP_LAST)
    for fold in range(3):
        for epoch in (1, 5, 10):
            project.save(f"cv/fold{fold}_epoch_{epoch}.pth")
        assert project.once() == 0
    assert sorted(p.name for p in (project.root / "cv").iterdir()) == [f"fold{n}_epoch_10.pth" for n in range(3)]


def test_a_plugin_that_fails_to_claim_costs_nothing(project, monkeypatch):
    from ckptwatch.formats import base
    from ckptwatch.formats.base import Family, formats
    from ckptwatch.stages import intake

    class Failing(Family):
        name, precedence = "failing", 1

        def claims(self, folder):
            if folder.name == "b":
                raise ZeroDivisionError
            return ()

    project.run_rule(**KEEP_LAST)
    for run in ("a", "b"):
        for number in (1, 2):
            project.save(f"{run}/{number:04d}.pt")
    known = formats()
    monkeypatch.setattr(intake, "formats", lambda: (Failing(), *known))
    monkeypatch.setattr(base, "formats", lambda: known)
    assert project.once() == 0
    assert len(list((project.root / "a").iterdir())) == 1 and len(list((project.root / "b").iterdir())) == 2
