"""The command line as a person or a script meets it: what it prints, where, and with which status it ends."""

import json

import pytest
from typer.testing import CliRunner

from ckptwatch.cli import app as cli
from ckptwatch.errors import CkptwatchError
from tests.support import OURS, save, tree

COMMANDS = ("run", "status", "rank", "plan", "eval", "inspect", "pin", "unpin", "retry", "approve", "restore", "trash",
            "check-config", "check", "stats", "samples", "notify", "demo")


class Done:
    def __init__(self, code, out, error):
        self.code, self.out, self.error = code, out, error

    @property
    def json(self):
        return json.loads(self.out)


def ckptwatch(*arguments):
    """One command in this process, with `main`'s handling of errors."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if isinstance(result.exception, CkptwatchError):
        return Done(result.exception.exit_status, result.stdout, str(result.exception))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def trained(project, stub_workers):
    for step, quality in ((100, 1.0), (200, 3.0), (300, 2.0), (400, float("nan"))):
        project.save(f"a/{step:04d}.pt", quality=quality)
    project.once()
    return project


def on(project, *arguments):
    return ckptwatch(*arguments, "-c", project.file)


# ---- every command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = ckptwatch(command, "--help")
    assert done.code == 0 and "Usage" in done.out


def test_the_version_can_be_asked_for():
    done = ckptwatch("--version")
    assert done.code == 0 and done.out.startswith("ckptwatch ")


def test_without_a_command_help_is_shown():
    done = ckptwatch()
    assert done.code == 2 and "Commands" in done.out + done.error


@pytest.mark.parametrize("arguments", [("nonsense",), ("run", "--nonsense"), ("pin",), ("rank",), ("inspect",)])
def test_a_wrong_command_line_ends_with_2(arguments):
    assert ckptwatch(*arguments).code == 2


@pytest.mark.parametrize("arguments", [("run",), ("status",), ("plan",), ("rank", "a"), ("pin", "a@1"), ("trash",)])
def test_a_missing_configuration_ends_with_2_and_names_it(tmp_path, arguments):
    done = ckptwatch(*arguments, "-c", tmp_path / "missing.yaml")
    assert done.code == 2 and "missing.yaml" in done.error and "Traceback" not in done.error


def test_a_broken_configuration_lists_every_problem(project):
    project.file.write_text("watch:\n  - root: runs\n    quite: 1\nworkers: {devices: [gpu]}\n")
    done = on(project, "plan")
    assert done.code == 2 and "line 3" in done.error and "line 4" in done.error


# ---- check-config ---------------------------------------------------------------------------------------------------


@pytest.fixture
def usable(project):
    """The project's recipe names a metric of its own."""
    (project.base / "metric.py").write_text("raise SystemExit('imported by a check')")
    return project


def test_check_config_names_what_each_recipe_can_yield(usable):
    project = usable
    done = ckptwatch("check-config", project.file)
    assert done.code == 0 and "recipe r can yield: quality" in done.out and "no problems" in done.out
    assert ckptwatch("check-config", project.file, "--json").json == {
        "version": 1, "ok": True, "problems": [], "recipes": {"r": ["quality"]}}


def test_check_config_refuses_a_metric_the_recipe_cannot_yield(project):
    project.run_rule(rank={"by": "fid"})
    done = ckptwatch("check-config", project.file)
    assert done.code == 2 and "recipe `r` cannot yield `fid`; it yields quality" in done.error
    document = ckptwatch("check-config", project.file, "--json")
    assert document.code == 2 and not document.json["ok"] and len(document.json["problems"]) == 1


def test_check_config_finds_what_is_missing_on_disk(project):
    project.config["recipes"]["r"]["reference"] = {"images": "nowhere"}
    project.write(watch=[{"root": "gone"}])
    done = ckptwatch("check-config", project.file)
    assert done.code == 2 and "nowhere" in done.error and "gone is no directory" in done.error


def test_check_config_needs_no_state_directory(usable):
    project = usable
    project.state.write_text("a file in its place")
    project.config["recipes"]["r"]["reference"] = {"images": "ref"}
    (project.base / "ref/1.png").write_bytes(b"x")
    assert ckptwatch("check-config", project.write().file).code == 0


def test_check_config_tells_of_programs_and_modules_that_are_not_there_beside_missing_files(project):
    project.config["recipes"] = {
        "a": {"sampler": {"command": ["bin/nowhere", "{checkpoint}"]}, "metrics": ["inception_score"],
              "prompts": "nowhere.txt"},
        "b": {"sampler": {"python": "unheard_of:make"}, "metrics": [{"name": "q", "function": "unknown:q", "mode": "max"}]},
    }
    done = ckptwatch("check-config", project.write(runs=[]).file, "--json")
    problems = done.json["problems"]
    assert done.code == 2 and not done.json["ok"]
    assert [p.split(": ")[0] for p in problems] == ["recipes.a", "recipes.a", "recipes.b", "recipes.b"]
    for word, problem in zip(("nowhere.txt", "bin/nowhere", "unheard_of", "unknown"), problems, strict=True):
        assert word in problem


# ---- eval -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def photographed(project):
    """Training wrote the images, into directories by run, step and epoch; the score is how many there are."""
    (project.base / "metric.py").write_text("def quality(images):\n    return images.count\n")
    project.config["recipes"]["r"] |= {"sampler": {"images": "../samples/{run}/{step:07d}-{epoch}"}, "samples": 2}
    return project.write(watch=[{"root": "runs", "names": [r"(?P<step>\d+)of(?P<epoch>\d+)\.pt"]}])


def photograph(directory):
    from PIL import Image

    directory.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (8, 8), (i, 2, 3)).save(directory / f"{i}.png")


def test_eval_knows_run_step_and_epoch_as_the_daemon_does(photographed):
    path = photographed.save("sweep/a/checkpoints/300of4.pt")
    photograph(photographed.root / "sweep/a/samples/sweep/a/0000300-4")
    told = photographed.json("eval", str(path), "--explain", stub=False)
    assert (told["run"], told["step"], told["epoch"]) == ("sweep/a", 300, 4)
    assert told["scores"]["quality"]["value"] == 2.0
    assert told["explain"]["step"]["value"] == 300
    assert not any("complete" in w for w in told["warnings"])


def test_eval_of_an_incomplete_checkpoint_warns_and_goes_on(photographed):
    path = photographed.save("a/7of1.pt")
    path.write_bytes(path.read_bytes()[:-40])
    photograph(photographed.root / "samples/a/0000007-1")
    done = photographed.cli("eval", str(path), "--json", stub=False)
    assert done.returncode == 0 and "7of1.pt is not complete" in done.stderr
    assert "7of1.pt is not complete" in json.loads(done.stdout)["warnings"][0]


# ---- inspect --------------------------------------------------------------------------------------------------------


def test_inspect_tells_what_a_file_is(tmp_path):
    save(tmp_path / "epoch=3-step=500.ckpt", {"loss": 0.5})
    document = ckptwatch("inspect", tmp_path / "epoch=3-step=500.ckpt", "--json").json
    keys = {"path", "format", "complete", "evidence", "step", "epoch", "metrics", "variants", "bytes", "identity"}
    assert keys <= set(document)
    assert (document["step"], document["epoch"], document["metrics"], document["complete"]) == (500, 3, {"loss": 0.5}, True)
    assert "yes" in ckptwatch("inspect", tmp_path / "epoch=3-step=500.ckpt").out


def test_inspect_of_a_broken_file_ends_with_3_and_says_why(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    done = ckptwatch("inspect", tmp_path / "x.pt")
    assert done.code == 3 and "empty file" in done.out


@pytest.mark.parametrize(("name", "code"), [("missing.pt", 1), ("notes.txt", 2), ("directory", 2)])
def test_inspect_of_what_is_no_checkpoint_says_so(tmp_path, name, code):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "directory").mkdir()
    done = ckptwatch("inspect", tmp_path / name)
    assert done.code == code and name in done.error


# ---- looking --------------------------------------------------------------------------------------------------------


def test_rank_shows_places_and_reasons(trained):
    document = on(trained, "rank", "a", "--json").json
    assert {"run", "metric", "mode", "recipe", "ranking", "unranked"} <= set(document)
    first = document["ranking"][0]
    assert {"rank", "path", "step", "epoch", "variant", "scores", "reason"} <= set(first)
    assert (first["rank"], first["step"], first["scores"]["quality"]["value"]) == (1, 200, 3.0)
    assert [u["step"] for u in document["unranked"]] == [400]
    assert "quality" in on(trained, "rank", "a").out


def test_plan_shows_decisions_and_changes_nothing(trained):
    trained.run_rule(keep={"best": 1}, health=False)
    before = tree(trained.root, ours=True)
    document = on(trained, "plan", "--json").json
    [run] = document["runs"]
    decisions = {d["step"]: (d["decision"], d["reasons"]) for d in run["decisions"]}
    assert {s: d for s, (d, _) in decisions.items()} == {200: "keep", 300: "remove", 400: "keep"}
    assert all(reasons for _, reasons in decisions.values()) and run["reclaimed_bytes"] > 0
    assert "remove" in on(trained, "plan", "a").out and tree(trained.root, ours=True) == before


def test_status_of_one_run_and_of_all(trained):
    assert "a" in on(trained, "status").out and "quality" in on(trained, "status", "a").out
    assert on(trained, "status", "--json").json["runs"][0]["best"]["step"] == 200


@pytest.mark.parametrize("command", ["status", "rank", "plan"])
def test_an_unknown_run_ends_with_2_and_names_the_known(trained, command):
    done = on(trained, command, "b")
    assert done.code == 2 and "known runs: a" in done.error


def test_trash_lists_and_purges_only_when_told(trained):
    document = on(trained, "trash", "--json").json
    assert [e["step"] for e in document["entries"]] == [100] and document["bytes"] > 0
    assert "restore a@100" in on(trained, "trash").out
    refused = on(trained, "trash", "--purge")
    assert refused.code == 2 and "--yes" in refused.error
    assert list((trained.root / OURS / "trash").glob("*/*"))
    assert on(trained, "trash", "--purge", "--yes", "--json").json["purged"] == 1
    assert not list((trained.root / OURS / "trash").glob("*/*"))


def test_everything_can_be_shown_in_ascii(trained):
    looks = ("status",), ("status", "a"), ("rank", "a"), ("plan",), ("trash",), ("inspect", trained.root / "a/0200.pt")
    for arguments in looks:
        config = () if arguments[0] == "inspect" else ("-c", trained.file)
        done = ckptwatch(*arguments, "--ascii", *config)
        assert done.code == 0 and done.out.isascii(), arguments


def test_before_the_first_start_every_look_has_an_answer(project):
    assert on(project, "status").code == 0
    assert on(project, "plan", "--json").json["runs"] == []
    assert on(project, "trash", "--json").json["entries"] == []
    assert on(project, "rank", "a").code == 2
    assert not project.state.exists() and not (project.root / OURS).exists(), "looking leaves nothing behind"


# ---- acting ---------------------------------------------------------------------------------------------------------


def test_actions_print_what_they_did(trained):
    assert "pinned" in on(trained, "pin", "a@200", "--why", "paper").out
    assert "unpinned" in on(trained, "unpin", "a@200").out
    assert "waits for evaluation again" in on(trained, "retry", "a@200").out
    assert "restored" in on(trained, "restore", "a@100").out
    assert on(trained, "approve", "a").code == 2


def test_a_restore_onto_a_taken_name_ends_with_1_and_changes_nothing(trained):
    (trained.root / "a/0100.pt").write_bytes(b"mine")
    done = on(trained, "restore", "a@100")
    assert done.code == 1 and "a file of that name exists" in done.error
    assert (trained.root / "a/0100.pt").read_bytes() == b"mine"


def test_a_broken_pipe_is_no_error(trained):
    import subprocess

    argv = " ".join(f"'{a}'" for a in trained._argv(("plan", "--json"), True, True))
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {argv} | true"], cwd=trained.base, env=trained.environment(),
                          capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_inspect_reads_names_as_the_roots_own_patterns_do(project):
    project.write(watch=[{"root": "runs", "names": [r"(?P<step>\d+)k_(?P<fid>[\d.]+)\.pt"]}])
    path = project.save("a/20k_7.5.pt")
    told = project.json("inspect", str(path))
    assert (told["step"], told["metrics"]) == (20, {"fid": 7.5})
    assert project.json("inspect", str(path), config=False)["step"] is None
