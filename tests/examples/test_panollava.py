"""examples/panollava, run as its README says. Tests are named after rows C1 – C10."""

import json
import shutil

import pytest
import torch

from tests.examples.example import Example

pytestmark = [pytest.mark.xdist_group("example-panollava"), pytest.mark.timeout(600)]

RUN = "runs/quic360"
EPOCHS, STEPS = 6, 24
METADATA = "checkpoint_metadata.json"
SHOW = "import json, sys; m = json.load(open(sys.argv[1])); print(json.dumps({'r': m['model_config']['r'], " \
       "'epochs': m['training_config']['epochs'], 'captions': len(open(sys.argv[2]).readlines()) - 1}))"


@pytest.fixture(scope="module")
def panollava(tmp_path_factory):
    """The example after a short training."""
    example = Example("panollava", tmp_path_factory.mktemp("examples"))
    example.python("train.py", "--epochs", EPOCHS)
    return example


@pytest.fixture(scope="module")
def told(panollava):
    """What `eval` says of the directory alone."""
    return evaluated(panollava, RUN, "--explain", "--log-samples", "--log-interval", 2, "--log-max-samples", 3)


@pytest.fixture(scope="module")
def ranking(panollava):
    done = panollava.ckptwatch("run", "--once")
    assert done.returncode == 0, done.stderr
    return panollava.json("rank", "quic360")


def evaluated(example, *arguments, config=""):
    done = example.ckptwatch("eval", *arguments, "--json", config=config)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


def copy_of(example, name):
    """The directory of the experiment under another name, links as they are."""
    target = example.directory / "runs-elsewhere" / name
    shutil.copytree(example.directory / RUN, target, symlinks=True)
    return target


def checkpoints(directory):
    return sorted(p for p in directory.glob("siglip_*.ckpt") if not p.is_symlink())


def test_c1_a_directory_is_evaluated_by_its_own_program_without_a_configuration(panollava, told):
    answer = json.loads(panollava.python(
        "eval.py", "--ckpt", f"{RUN}/best.ckpt", "--csv-input", "data/val.csv", "--batch-size", 64).splitlines()[-1])
    assert set(told["scores"]) == {"token_f1", "exact_match", "val_loss"}
    assert told["scores"]["val_loss"]["value"] == pytest.approx(answer["val_loss"], rel=1e-4)
    for name in ("token_f1", "exact_match"):
        score = told["scores"][name]
        assert {k: score[k] for k in ("value", "low", "high")} == pytest.approx(answer[name])
        assert score["n"] == 128
    assert "python ../../eval.py --ckpt {checkpoint}" in told["stderr"]


def test_c2_the_metadata_are_read_and_handed_over(panollava, told):
    assert told["explain"]["experiment_name"]["value"] == "quic360"
    assert told["explain"]["stage"]["value"] == "finetune"
    (panollava.directory / "show.py").write_text(SHOW)
    found = evaluated(panollava, RUN, "--command", "python show.py {metadata} {csv_input}", "--csv-input", "data/test.csv")
    values = {name: score["value"] for name, score in found["scores"].items()}
    assert values == {"r": 8, "epochs": EPOCHS, "captions": 64}


def test_c3_best_comes_before_last_before_the_newest(panollava):
    directory = copy_of(panollava, "selection")
    first, second, *_ = checkpoints(directory)
    (directory / "best.ckpt").unlink()
    (directory / "best.ckpt").symlink_to(first.name)
    assert selected(panollava, directory) == first.name
    (directory / "best.ckpt").unlink()
    (directory / "last.ckpt").unlink()
    (directory / "last.ckpt").symlink_to(second.name)
    assert selected(panollava, directory) == second.name
    (directory / "last.ckpt").unlink()
    first.touch()
    assert selected(panollava, directory) == first.name


def selected(example, directory):
    """The name of the checkpoint that a program is given."""
    found = evaluated(example, directory, "--command", "sh -c 'echo \"{{\\\"epoch\\\": {epoch}}}\"'")
    assert found["scores"]["epoch"]["value"] == found["epoch"]
    return found["path"].rsplit("/", 1)[1]


def test_c4_an_adapter_beside_the_checkpoint_is_found_and_used(panollava, told):
    directory = copy_of(panollava, "adapter")
    best = (directory / "best.ckpt").resolve()
    state = torch.load(best, weights_only=True)
    state["state_dict"] = {k: v for k, v in state["state_dict"].items() if "lora_" not in k}
    torch.save(state, best)  # what is learnt of the language is in lora_weights/ alone
    found = evaluated(panollava, directory, "--explain")
    assert found["explain"]["lora"]["value"] == str(directory / "lora_weights")
    assert {k: s["value"] for k, s in found["scores"].items()} == pytest.approx(
        {k: s["value"] for k, s in told["scores"].items()})
    (directory / "lora_weights/adapter_model.safetensors").unlink()
    done = panollava.ckptwatch("eval", directory, config="")
    assert done.returncode == 1
    assert "lora_weights lacks adapter_model.safetensors" in done.stderr


@pytest.fixture(scope="module")
def overridden(panollava):
    """Command line, metadata and configuration all say something."""
    directory = copy_of(panollava, "overridden")
    metadata = json.loads((directory / METADATA).read_text())
    metadata["evaluation"] |= {"log_interval": 4, "max_samples": 50}
    (directory / METADATA).write_text(json.dumps(metadata))
    file = panollava.config("overridden.yaml", recipes__captions__max_samples=40, recipes__captions__log_interval=3)
    return evaluated(panollava, directory, "--csv-input", "data/test.csv", "--max-samples", 12, "--explain", config=file)


def test_c5_dataset_and_number_of_samples_are_overridden_and_config_stays_ours(panollava, overridden, told):
    assert {s["n"] for s in overridden["scores"].values()} == {12}
    assert overridden["scores"]["val_loss"]["value"] != told["scores"]["val_loss"]["value"]
    assert overridden["explain"]["timeout"] == {"value": 300.0, "from": "recipe captions"}


def test_c6_every_value_is_explained_and_the_command_line_comes_first(panollava, overridden):
    table = panollava.directory / "data"
    explained = {name: (entry["value"], entry["from"]) for name, entry in overridden["explain"].items()}
    assert explained["csv_input"] == (str(table / "test.csv"), "--csv-input")
    assert explained["max_samples"] == (12, "--max-samples")
    assert explained["log_interval"] == (4, f"{METADATA}, evaluation.log_interval")
    assert explained["batch_size"] == (64, f"{METADATA}, training_config.batch_size")
    assert explained["log_max_samples"] == (5, "recipe captions")
    assert explained["epoch"][0] is not None


def test_c7_where_configuration_and_metadata_disagree_both_and_the_winner_are_named(overridden, told):
    assert told["warnings"] == []
    key = f"{METADATA}, evaluation.log_interval"
    conflict = f"log_interval: {key} says 4, recipe captions says 3; 4 counts, from {key}"
    assert conflict in overridden["warnings"]
    assert any(w.startswith("max_samples:") and w.endswith("12 counts, from --max-samples") for w in overridden["warnings"])


def test_c8_pairs_of_prediction_and_target_are_shown(told):
    assert [pair["image"] for pair in told["samples"]] == ["val/0000.png", "val/0002.png", "val/0004.png"]
    assert all(pair["target"].startswith("a ") and pair["prediction"] for pair in told["samples"])


def test_c8_a_daemon_keeps_pairs_of_each_checkpoint(panollava, ranking):
    best = ranking["ranking"][0]
    (shown,) = panollava.json("samples", f"quic360@{best['step']}")["evaluations"]
    assert [pair["image"] for pair in shown["samples"]] == [f"val/{i:04d}.png" for i in (0, 16, 32, 48, 64)]
    assert "prediction" in panollava.ckptwatch("samples", f"quic360@{best['step']}").stdout


ERRORS = {
    "no metadata": (lambda d: (d / METADATA).unlink(), (f"there is no {{}}/{METADATA}", "--command", "configuration")),
    "no checkpoint": (lambda d: [p.unlink() for p in d.glob("*.ckpt")], ("looked for best.ckpt, last.ckpt and *.ckpt",)),
    "dangling link": (lambda d: (d / "best.ckpt").resolve().unlink(),
                      ("best.ckpt points to siglip_", "which does not exist", "name a checkpoint yourself: siglip_")),
    "broken metadata": (lambda d: (d / METADATA).write_text("{"), (f"{{}}/{METADATA}: no JSON", "json.tool")),
}


@pytest.mark.parametrize("name", ERRORS)
def test_c9_errors_say_what_was_looked_for_where_and_what_to_do(panollava, name):
    spoil, words = ERRORS[name]
    directory = copy_of(panollava, name.replace(" ", "-"))
    spoil(directory)
    done = panollava.ckptwatch("eval", directory, config="")
    assert done.returncode in (1, 2)
    assert "→" in done.stderr
    for text in words:
        assert text.format(directory) in done.stderr
    assert "Traceback" not in done.stderr


def test_c10_epoch_and_loss_are_read_from_the_name(panollava, ranking):
    path = checkpoints(panollava.directory / RUN)[-1]
    shown = panollava.json("inspect", path)
    assert shown["epoch"] == EPOCHS - 1
    assert path.name.endswith(f"_epoch{EPOCHS - 1:02d}_loss{shown['metrics']['loss']:.4f}.ckpt")
    assert ranking["ranking"][0]["scores"]["loss"]["value"] == pytest.approx(
        ranking["ranking"][0]["scores"]["val_loss"]["value"], abs=1e-4)


def test_the_daemon_ranks_by_what_the_program_answers_and_keeps_the_best(panollava, ranking):
    assert ranking["metric"] == "token_f1"
    values = [p["scores"]["token_f1"]["value"] for p in ranking["ranking"]]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.75
    assert ranking["ranking"][0]["step"] > STEPS * EPOCHS / 2
    assert len(checkpoints(panollava.directory / RUN)) < EPOCHS
    assert (panollava.directory / RUN / "best.ckpt").exists()
    assert (panollava.reports("quic360") / "best.ckpt").exists()
