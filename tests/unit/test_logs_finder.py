"""Where logs are looked for, where not, and who reads them."""

import os
from pathlib import Path

import pytest

from ckptwatch.logs import finder
from ckptwatch.logs.finder import find_logs
from ckptwatch.logs.registry import dialect_named, dialect_of, dialects
from ckptwatch.model import Logged

JSON_ROW = '{"step": 1, "loss": 0.5}\n'


def write(run, *names, text=""):
    for name in names:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def found(run, others=(), logged=None):
    return [str(path.relative_to(run)) for path in find_logs(run, others, logged).files]


def looked_into(run, logged=None):
    return sorted(str(path.relative_to(run)) for path in find_logs(run, (), logged).directories)


@pytest.mark.parametrize("name", [
    "metrics.jsonl", "a.ndjson", "metric-fid50k_full.jsonl", "results.csv", "lightning_logs/version_0/metrics.csv",
    "train.log", "train.log.3", "log.txt", "train_log.txt", "stdout.txt", "slurm-123.out", "stdout",
    "20210503_120000.log.json",
    "20240503_120000/vis_data/scalars.json", "vis_data/20240503_120000.json", "trainer_state.json",
    "checkpoint_metadata.json", "log.json", "metrics.json", "0/metrics.csv",
    "runs/May03_12-00-00_host/events.out.tfevents.1700000000.host.1.0",
    "a/b/c/d/metrics.csv", "events.out.tfevents.1700000000.host.1.0.v2",
])
def test_logs_of_all_kinds_are_found(tmp_path, name):
    write(tmp_path, name)
    assert found(tmp_path) == [name]


@pytest.mark.parametrize("name", [
    "config.json", "args.yaml", "requirements.txt", "model.pt", "notes.md", "best_checkpoints.json",
    "best_checkpoint_results.json", ".ckptwatch/runs/a/log.txt", ".git/log.txt", ".hidden.log", "checkpoint-500/train.log",
    "global_step100/x.csv", "epoch_3/metrics.csv", "step_100.ckpt/metrics.csv", "best_model/log.txt", "images/prompts.csv",
    "samples/x.csv", "wandb/run-1/files/output.log", "a/b/c/d/e/metrics.csv",
    "tensorboard/events.out.tfevents.1700000000.host.1.0.ckptwatch", "x" * 240 + ".pt/log.txt",
])
def test_what_is_no_log_or_not_this_runs_is_not(tmp_path, name):
    write(tmp_path, name)
    assert found(tmp_path) == []


def test_another_runs_directory_is_its_own(tmp_path):
    write(tmp_path, "train.log", "sweep/1/train.log", "sweep/2/train.log")
    assert found(tmp_path, [tmp_path / "sweep/1"]) == ["sweep/2/train.log", "train.log"]


def test_links_are_not_followed(tmp_path):
    write(tmp_path, "run/2024.log", "elsewhere/train.log")
    (tmp_path / "run/latest.log").symlink_to("2024.log")
    (tmp_path / "run/logs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run/again").symlink_to(".")
    assert found(tmp_path / "run") == ["2024.log"]


def test_a_pipe_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "train.log")
    assert found(tmp_path) == [] and found(tmp_path, logged=Logged(files=("*.log",))) == []
    assert dialect_of(tmp_path / "train.log", tmp_path) is None


def test_of_the_states_in_checkpoints_only_the_newest_is_read(tmp_path):
    write(tmp_path, "trainer_state.json", *[f"checkpoint-{n}/trainer_state.json" for n in (500, 1000, 1500)])
    write(tmp_path, "checkpoint-2000/model.safetensors")
    assert found(tmp_path) == ["checkpoint-1500/trainer_state.json", "trainer_state.json"]


def test_a_checkpoint_whose_state_is_yet_to_come_is_looked_at_again(tmp_path):
    write(tmp_path, "checkpoint-500/model.safetensors")
    assert looked_into(tmp_path) == [".", "checkpoint-500"]


def test_a_directory_that_may_get_logs_is_looked_at_again(tmp_path):
    write(tmp_path, "a/b/x.pt", "images/y.png", "epoch_1/z.pt")
    assert looked_into(tmp_path) == [".", "a", "a/b"]


def test_what_is_written_twice_is_read_once(tmp_path):
    time = "20240503_120000"
    write(tmp_path, f"{time}/{time}.log", f"{time}/vis_data/scalars.json", f"{time}/vis_data/{time}.json", f"{time}.log",
          f"{time}.log.json", "other.log")
    assert found(tmp_path) == [f"{time}/vis_data/scalars.json", f"{time}.log.json", "other.log"]


def test_a_tree_without_end_is_looked_into_within_bounds(tmp_path, monkeypatch):
    write(tmp_path, *[f"d{i:02d}/e/{j}.log" for i in range(30) for j in range(5)])
    for logged in (None, Logged(files=("**/*.log",))):
        assert len(find_logs(tmp_path, (), logged).files) == 150
        with monkeypatch.context() as patch:
            patch.setattr(finder, "MOST_DIRECTORIES", 40)
            result = find_logs(tmp_path, (), logged)
            assert len(result.directories) == 40 and 0 < len(result.files) < 150
            patch.setattr(finder, "MOST_ENTRIES", 3)
            assert len(find_logs(tmp_path, (), logged).files) == 9
            patch.setattr(finder, "MOST_FILES", 7)
            assert len(find_logs(tmp_path, (), logged).files) == 7


def test_a_missing_directory_has_no_logs(tmp_path):
    assert find_logs(tmp_path / "gone").files == ()
    (tmp_path / "file").write_text("")
    assert find_logs(tmp_path / "file").files == ()


# ---- patterns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "names"), [
    ("*.log", ["train.log"]),
    ("logs/eval*.dat", ["logs/eval_1.dat", "logs/eval_2.dat"]),
    ("**/*.dat", ["a/b/deep.dat", "logs/eval_1.dat", "logs/eval_2.dat"]),
    ("logs/./eval_1.dat", ["logs/eval_1.dat"]),
    ("logs/../train.log", ["train.log"]),
    ("*/eval_?.dat", ["logs/eval_1.dat", "logs/eval_2.dat"]),
    ("missing/*.log", []),
    ("images/x.csv", ["images/x.csv"]),  # who names it means it
    ("[", []), ("", []), ("**", []), ("..", []), ("*" * 50, ["train.log"]),
])
def test_patterns_say_what_is_read(tmp_path, pattern, names):
    run = tmp_path / "run"
    write(run, "train.log", "logs/eval_1.dat", "logs/eval_2.dat", "a/b/deep.dat", "images/x.csv", ".hidden")
    files = find_logs(run, (), Logged(files=(pattern,))).files
    assert [str(path.relative_to(run)) for path in files] == names


def test_a_pattern_leads_out_of_the_run_where_it_says_so(tmp_path):
    write(tmp_path, "logs/run1.csv", "run1/model.pt")
    result = find_logs(tmp_path / "run1", (), Logged(files=("../logs/run1*.csv",)))
    assert [path.resolve() for path in result.files] == [tmp_path / "logs/run1.csv"]
    assert tmp_path / "logs" in [path.resolve() for path in result.directories]


def test_what_a_pattern_will_find_is_looked_for_again(tmp_path):
    write(tmp_path, "a/x.pt")
    assert looked_into(tmp_path, Logged(files=("a/later.csv", "b/*.csv"))) == [".", "a"]


# ---- who reads it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text", "dialect"), [
    ("metrics.jsonl", JSON_ROW, "json-lines"),
    ("log.txt", JSON_ROW, "json-lines"),
    ("metrics.csv", "epoch,step,loss\n", "lightning-csv"),
    ("metrics.csv", "epoch,loss\n", "csv"),
    ("results.csv", "epoch,train/box_loss\n", "ultralytics"),
    ("results.csv", "step,loss\n", "csv"),
    ("20210503_120000.log.json", '{"mode": "train", "epoch": 1, "iter": 5, "loss": 1}\n', "mmengine-json"),
    ("train.log.json", JSON_ROW, "json-lines"),
    ("20210503_120000.log", "2021-05-03 12:00:00,123 - mmdet - INFO - Environment info:\n", "mmengine-text"),
    ("metric-fid.jsonl", '{"results": {"fid": 7}, "snapshot_pkl": "network-snapshot-000001.pkl"}\n', "stylegan"),
    ("train.log", "Namespace(lr=0.1)\n", "text"),
    ("slurm-1.out", "hello\n", "text"),
    ("train.log", "", None), ("train.log", "half a line", None), ("a.jsonl", '{"prompt": "x"}\n', None),
    ("a.out", "\x7fELF\0\0\0\n", None), ("metrics.csv", "step,lo", None),
])
def test_each_log_has_its_dialect(tmp_path, name, text, dialect):
    (tmp_path / name).write_text(text)
    chosen = dialect_of(tmp_path / name, tmp_path)
    assert (chosen and chosen.name) == dialect


@pytest.mark.parametrize(("name", "text", "dialect"), [
    ("a.csv", "n,loss\n", "csv"), ("a.dat", '{"n": 1, "loss": 2}\n', "json-lines"), ("a.dat", "n 1 loss 2\n", "text"),
    ("a.dat", "\0\0\n", None), ("a.dat", "", None),
])
def test_a_log_that_a_user_named_is_read_whatever_its_columns(tmp_path, name, text, dialect):
    (tmp_path / name).write_text(text)
    chosen = dialect_of(tmp_path / name, tmp_path, Logged(files=(name,), step="n"))
    assert (chosen and chosen.name) == dialect
    assert dialect_of(tmp_path / name, tmp_path) is None


def test_of_a_file_of_any_size_only_the_beginning_is_looked_at(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSON_ROW)
    os.truncate(tmp_path / "a.jsonl", 1 << 40)
    assert dialect_of(tmp_path / "a.jsonl", tmp_path).name == "json-lines"


def test_dialects_are_found_again_by_their_names():
    assert len({dialect.name for dialect in dialects()}) == len(dialects())
    assert all(dialect_named(dialect.name) is dialect for dialect in dialects())
    assert dialect_named("no such dialect") is None


def test_no_head_is_a_fault_of_any_dialect():
    heads = [b"", b"\n", b"\0" * 4096, b"{", b"{}\n", b'{"a":' * 600, b"\xff" * 100, b",\n", b"a,b\n", os.urandom(4096)]
    names = ["a.json", "scalars.json", "trainer_state.json", "metrics.csv", "results.csv", "stats.jsonl", "a.log",
             "\udcff.csv", "events.out.tfevents.1", "checkpoint_metadata.json", "vis_data/1.json"]
    for dialect in dialects():
        for name in names:
            assert all(dialect.claims(Path(name), head) in (True, False) for head in heads)
