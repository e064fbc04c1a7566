"""What is wrong with a run is named within a stated number of points, with its numbers, and no longer once it is over."""

import math
import random

import pytest

from ckptwatch.core.health import NameKind, Saved, examine, kind_of
from ckptwatch.core.health_names import better, is_total, term_of
from ckptwatch.core.series import HISTORY, RECENT, Curve, LogPoint, summarise
from ckptwatch.model import AlarmKind, HealthRule, Mode, Symptom, WeightScan
from tests.curves import Noise, Unfolding, curve_of, points

RULE = HealthRule()


def seen(*curves: Curve, rule: HealthRule = RULE, saved: tuple[Saved, ...] = (), now: float = 0.0, ended: bool = False,
         last_row_at: float | None = None, modes: dict[str, Mode] | None = None) -> dict[tuple[AlarmKind, str], Symptom]:
    found = examine(curves, rule=rule, checkpoints=saved, last_row_at=last_row_at, now=now, ended=ended, modes=modes)
    assert len({(s.kind, s.subject) for s in found}) == len(found), "one symptom of a kind for each name"
    return {(s.kind, s.subject): s for s in found}


def first_step(run: Unfolding, kind: AlarmKind, subject: str, *, every: int, until: int) -> int:
    """The step at which a symptom is first seen, by looking every so many steps."""
    for step in range(every, until + 1, every):
        curves, saved = run.at(step)
        if (kind, subject) in seen(*curves, saved=tuple(saved), now=float(step)):
            return step
    pytest.fail(f"{kind} of {subject} was not seen until step {until}")


def decaying(chance: random.Random, width: float, count: int = 400) -> list[float]:
    return [(0.3 + 2 * math.exp(-i / 150)) * Noise(chance).normal(width) for i in range(count)]


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [
    ("loss", NameKind.TRAINING_LOSS), ("train/loss", NameKind.TRAINING_LOSS), ("train_loss_step", NameKind.TRAINING_LOSS),
    ("loss_kpt", NameKind.TRAINING_LOSS), ("Loss/D/loss", NameKind.TRAINING_LOSS),
    ("train/box_loss", NameKind.TRAINING_LOSS),
    ("errD", NameKind.TRAINING_LOSS), ("trainLoss", NameKind.TRAINING_LOSS), ("train/mse", NameKind.TRAINING_LOSS),
    ("val_loss", NameKind.VALIDATION_LOSS), ("eval_loss", NameKind.VALIDATION_LOSS),
    ("val/dfl_loss", NameKind.VALIDATION_LOSS),
    ("val/mse", NameKind.METRIC), ("coco/AP", NameKind.METRIC), ("metrics/mAP50-95(B)", NameKind.METRIC),
    ("acc_pose", NameKind.METRIC), ("abs_rel", NameKind.METRIC), ("fid", NameKind.METRIC), ("clip_score", NameKind.METRIC),
    ("accuracy_top-1", NameKind.METRIC), ("mIoU", NameKind.METRIC), ("eval/rougeLsum_f1", NameKind.METRIC),
    ("lr", NameKind.OTHER), ("learning_rate", NameKind.OTHER), ("lr-AdamW", NameKind.OTHER), ("lr/pg0", NameKind.OTHER),
    ("grad_norm", NameKind.OTHER), ("time", NameKind.OTHER), ("data_time", NameKind.OTHER), ("eta", NameKind.OTHER),
    ("memory", NameKind.OTHER), ("loss_scale", NameKind.OTHER), ("train_samples_per_second", NameKind.OTHER),
    ("eval_runtime", NameKind.OTHER), ("total_flos", NameKind.OTHER), ("epoch", NameKind.OTHER),
    ("Timing/sec_per_tick", NameKind.OTHER), ("anything", NameKind.OTHER), ("", NameKind.OTHER),
])
def test_a_name_is_taken_for_what_it_is(name, kind):
    assert kind_of(name) is kind


def test_words_tell_which_direction_is_better_and_which_terms_belong_together():
    assert better("metrics/mAP50(B)") is Mode.MAX
    assert better("val/3d_error") is Mode.MIN
    assert better("lambda") is None
    assert term_of("train/box_loss") == term_of("val/box_loss") != term_of("val/cls_loss")
    assert is_total("train/loss_epoch") and not is_total("train/box_loss")


# ---- spikes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "factor", "lasting"), [(0.05, 3, 1), (0.1, 10, 1), (0.1, 3, 5), (0.3, 10, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_spike_is_seen_within_five_points(width, factor, lasting, seed):
    values = decaying(random.Random(seed), width)
    for i in range(300, 300 + lasting):
        values[i] *= factor
    symptom = seen(curve_of("loss", values[: 300 + lasting]))[AlarmKind.LOSS_SPIKE, "loss"]
    numbers = symptom.numbers
    assert numbers["ratio"] == pytest.approx(numbers["current"] / numbers["average"])
    assert numbers["ratio"] > RULE.loss_spike
    assert 300 <= symptom.step < 300 + lasting
    assert symptom.causes


def test_a_spike_names_current_value_average_and_ratio():
    symptom = seen(curve_of("loss_kpt", [0.5] * 60 + [3.0]))[AlarmKind.LOSS_SPIKE, "loss_kpt"]
    assert symptom.message == "loss_kpt 3 at step 60 is 6.0 × its recent average 0.5"
    assert symptom.numbers == {"current": 3.0, "average": 0.5, "ratio": 6.0}
    assert (symptom.step, symptom.epoch) == (60, 60 / 50)


def test_a_spike_is_over_once_the_loss_has_been_back_for_ten_points():
    key = (AlarmKind.LOSS_SPIKE, "loss")
    values = [0.5] * 100 + [3.0]
    assert key in seen(curve_of("loss", values + [0.5] * 9))
    assert key not in seen(curve_of("loss", values + [0.5] * 10))


def test_a_spike_is_measured_by_the_ratio_that_was_configured():
    values = [1.0] * 100 + [2.5]
    assert seen(curve_of("loss", values))
    assert not seen(curve_of("loss", values), rule=HealthRule(loss_spike=3.0))
    assert not seen(curve_of("loss", values), rule=HealthRule(loss_spike=None))


def test_a_curve_that_often_jumps_is_not_said_to_spike():
    chance = random.Random(3)
    values = [chance.lognormvariate(0, 0.7) for _ in range(400)]
    assert max(values[300:]) > 2 * RULE.loss_spike * sum(values) / 400, "it does jump"
    assert not seen(curve_of("loss", values))


def test_the_bump_after_a_restart_of_the_learning_rate_is_no_spike():
    values = [0.3] * 200 + [0.3 + 0.5 * math.exp(-i / 10) for i in range(20)]
    restarted = curve_of("lr", [1e-5] * 200 + [1e-3] * 20)
    assert (AlarmKind.LOSS_SPIKE, "loss") in seen(curve_of("loss", values), curve_of("lr", [1e-5] * 220))
    assert (AlarmKind.LOSS_SPIKE, "loss") not in seen(curve_of("loss", values), restarted)


# ---- drops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_drop_of_a_tenth_in_an_ap_with_noise_of_a_hundredth_is_seen_within_four_validations(seed):
    chance = random.Random(seed)
    ap = [0.72 * (1 - math.exp(-i / 8)) + chance.gauss(0, 0.01) - (0.1 if i >= 40 else 0) for i in range(50)]
    run = Unfolding(names={"coco/AP": points(ap, every=10)})
    assert 400 <= first_step(run, AlarmKind.METRIC_DROP, "coco/AP", every=10, until=430) <= 430


def test_a_drop_names_current_value_best_and_drop():
    symptom = seen(curve_of("val/AP", [0.5, 0.6, 0.68, 0.7, 0.71, 0.72, 0.715, 0.5, 0.51], every=100))[
        AlarmKind.METRIC_DROP, "val/AP"]
    assert symptom.numbers == pytest.approx({"current": 0.51, "best": 0.72, "drop": 0.21, "best_step": 500})
    assert "0.51 at step 800 is 0.21 below its best, 0.72 at step 500" in symptom.message
    assert symptom.step == 700, "since when it lies below"


def test_a_drop_in_a_metric_of_another_scale_is_a_part_of_its_size():
    falls = [60.0, 40.0, 30.0, 25.0, 22.0, 20.0, 19.0, 18.5, 18.2, 18.0, 17.9, 17.8]
    assert not seen(curve_of("fid", [*falls, 18.4, 18.5]))
    assert (AlarmKind.METRIC_DROP, "fid") in seen(curve_of("fid", [*falls, 30.0, 31.0]))


def test_the_direction_of_a_metric_can_be_told():
    values = [0.9, 0.5, 0.3, 0.2, 0.15, 0.12, 0.11, 0.1, 0.5, 0.5]
    assert not seen(curve_of("delta", values))
    assert (AlarmKind.METRIC_DROP, "delta") in seen(curve_of("delta", values), modes={"delta": Mode.MIN})


def test_the_first_validations_of_a_run_may_jump_about():
    assert not seen(curve_of("val/acc", [0.1, 0.45, 0.38, 0.6, 0.52, 0.65, 0.58]))


# ---- NaN and Inf ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_seen_at_once_and_over_after_the_window(bad):
    values = [1.0] * 30
    key = (AlarmKind.NOT_FINITE, "loss_kpt")
    symptom = seen(curve_of("loss_kpt", [*values, bad]))[key]
    assert symptom.step == 30
    assert str(bad).strip("-").lower() in symptom.message.lower()
    assert key in seen(curve_of("loss_kpt", [*values, bad, *[1.0] * 49]))
    assert key not in seen(curve_of("loss_kpt", [*values, bad, *[1.0] * 50]))


def test_a_loss_that_stays_nan_is_said_to_be_so_since_its_first():
    symptom = seen(curve_of("loss", [1.0] * 100 + [math.nan] * 30))[AlarmKind.NOT_FINITE, "loss"]
    assert symptom.step == 100
    assert symptom.numbers["streak"] == 30


def test_gradients_may_overflow_and_a_metric_without_samples_is_none():
    assert not seen(curve_of("grad_norm", [math.inf, 1.0, 2.0]), curve_of("val/AP_rare", [math.nan] * 9))
    assert seen(curve_of("val/AP", [0.1, 0.2, math.nan]))


def test_weights_that_are_no_numbers_are_named_until_a_later_checkpoint_is_well():
    bad = WeightScan(state="not_finite", tensors=9, bad={"head.weight": 4096, "head.bias": 2}, bad_tensors=5)
    saved = (Saved(step=100, epoch=1, at=0.0, weights=WeightScan(state="finite")),
             Saved(step=200, epoch=2, at=1.0, weights=bad), Saved(step=300, epoch=3, at=2.0, weights=bad),
             Saved(step=400, epoch=4, at=3.0))
    symptom = seen(saved=saved)[AlarmKind.WEIGHTS, "weights"]
    assert symptom.step == 200, "since the first of them"
    assert "5 tensors of the checkpoint at step 300: head.weight (4,096), head.bias (2)" in symptom.message
    assert not seen(saved=(*saved, Saved(step=500, epoch=5, at=4.0, weights=WeightScan(state="finite"))))
    assert not seen(saved=saved, rule=HealthRule(weights=False))


# ---- losses that do not fall ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_never_falls_is_a_plateau_after_as_many_points(seed):
    noise = Noise(random.Random(seed))
    run = Unfolding(names={"loss": points([2.303 * noise.normal(0.02) for _ in range(560)])})
    assert first_step(run, AlarmKind.PLATEAU, "loss", every=20, until=560) >= 500


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_stops_falling_all_at_once_is_a_plateau_within_half_as_many_points_more(seed):
    noise = Noise(random.Random(seed))
    values = [(0.3 + 2 * math.exp(-min(i, 300) / 200)) * noise.normal(0.02) for i in range(900)]
    run = Unfolding(names={"loss": points(values)})
    assert first_step(run, AlarmKind.PLATEAU, "loss", every=10, until=800) >= 500


def test_a_loss_that_has_come_to_rest_is_no_plateau():
    noise = Noise(random.Random(1))
    assert not seen(curve_of("loss", [(0.3 + 2 * math.exp(-i / 60)) * noise.normal(0.01) for i in range(1000)]))


def test_no_plateau_while_a_metric_still_improves_or_at_the_end_of_a_schedule():
    flat = curve_of("loss", [1.0 + 0.001 * (i % 7) for i in range(600)])
    assert (AlarmKind.PLATEAU, "loss") in seen(flat)
    assert not seen(flat, curve_of("val/acc", [0.01 * i for i in range(30)], every=20))
    assert not seen(flat, curve_of("lr", [1e-3 * (1 - i / 600) for i in range(600)]))


def test_a_plateau_longer_than_the_points_that_are_kept_is_judged_by_their_means():
    pieces = [LogPoint(step=i * 128, epoch=None, value=2.3 + 0.0005 * (i % 3)) for i in range(200)]
    recent = [LogPoint(step=25600 - 1024 + i, epoch=None, value=2.3 + 0.01 * (i % 3)) for i in range(1024)]
    summary = summarise([LogPoint(step=i, epoch=None, value=2.3) for i in range(25600)])
    curve = Curve(name="loss", recent=recent, history=pieces, summary=summary)
    assert (AlarmKind.PLATEAU, "loss") in seen(curve, rule=HealthRule(plateau=10_000))
    assert not seen(curve, rule=HealthRule(plateau=30_000))


# ---- divergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_rises_for_good_is_a_divergence_within_three_windows(seed):
    chance = random.Random(seed)
    noise = Noise(chance)
    values = [(0.3 + 2 * math.exp(-i / 100)) * noise.normal(0.1) * math.exp(max(0, i - 500) / 100) for i in range(700)]
    run = Unfolding(names={"loss": points(values)})
    step = first_step(run, AlarmKind.DIVERGENCE, "loss", every=10, until=650)
    assert step > 500


def test_a_divergence_says_how_far_above_its_lowest_the_loss_is_and_since_when():
    values = [0.3 + 2 * math.exp(-i / 60) for i in range(500)] + [2.0] * 120
    symptom = seen(curve_of("loss", values))[AlarmKind.DIVERGENCE, "loss"]
    assert symptom.numbers["current"] == 2.0
    assert symptom.numbers["ratio"] == pytest.approx(2.0 / symptom.numbers["lowest"])
    assert 450 <= symptom.step <= 500, "not later than it began, so that the checkpoint to go back to is a good one"


def test_a_bump_that_comes_down_again_is_no_divergence():
    values = [0.3] * 400 + [0.3 + 0.6 * math.exp(-i / 120) for i in range(200)]
    assert (AlarmKind.DIVERGENCE, "loss") not in seen(curve_of("loss", values))


@pytest.mark.parametrize("name", ["loss_G", "Loss/D/loss", "adv_loss", "kl_loss", "loss_commit"])
def test_losses_that_rise_in_health_are_no_divergence(name):
    values = [0.5 + 0.005 * i for i in range(600)]
    assert (AlarmKind.DIVERGENCE, "loss") in seen(curve_of("loss", values))
    assert not seen(curve_of(name, values))


def test_a_term_that_rises_is_no_divergence_while_the_whole_loss_falls():
    rises = curve_of("loss_reg_term", [0.1 + 0.001 * i for i in range(600)])
    assert (AlarmKind.DIVERGENCE, "loss_reg_term") in seen(rises)
    assert not seen(rises, curve_of("loss", [3 * math.exp(-i / 200) + 1 for i in range(600)]))


# ---- overfitting ----------------------------------------------------------------------------------------------------


def overfits(chance: random.Random, *, training: float = 250.0) -> Unfolding:
    noise = Noise(chance)
    return Unfolding(names={
        "train_loss": points([(0.02 + 2 * math.exp(-i / training)) * noise.normal(0.05) for i in range(1000)]),
        "val_loss": points([(0.5 + 2 * math.exp(-i / 150) + max(0, i - 400) / 1000) * noise.normal(0.01)
                            for i in range(20, 1000, 20)], every=20, first=20)})


@pytest.mark.parametrize("seed", range(5))
def test_overfitting_is_seen_within_twelve_validations(seed):
    assert first_step(overfits(random.Random(seed)), AlarmKind.OVERFITTING, "val_loss", every=20, until=640) >= 480


def test_overfitting_names_both_losses_and_since_when():
    run = overfits(random.Random(0))
    symptom = seen(*run.at(900)[0])[AlarmKind.OVERFITTING, "val_loss"]
    assert symptom.numbers["rise"] == pytest.approx(symptom.numbers["current"] - symptom.numbers["lowest"])
    assert 380 <= symptom.step <= 480
    assert "while train_loss went on falling to" in symptom.message


def test_a_validation_loss_that_rises_with_the_training_loss_is_no_overfitting():
    run = overfits(random.Random(0))
    run.names["train_loss"][500:] = points([1.0] * 500, first=500)
    assert (AlarmKind.OVERFITTING, "val_loss") not in seen(*run.at(900)[0])


def test_five_worse_validations_in_a_row_are_enough_where_there_is_no_noise():
    falls = points([2 / (1 + i / 50) for i in range(1000)])
    validation = [2.0, 1.5, 1.2, 1.0, 0.9, 0.85, 0.83, 0.82] + [0.82 + 0.012 * i for i in range(1, 6)]
    key = (AlarmKind.OVERFITTING, "val_loss")
    run = Unfolding(names={"loss": falls, "val_loss": points(validation, every=50)})
    assert key not in seen(*run.at(550)[0])
    assert key in seen(*run.at(600)[0])


# ---- stuck at zero --------------------------------------------------------------------------------------------------


def test_an_ap_of_exactly_zero_is_named_at_the_fifth_validation_and_not_before():
    loss = points([1 / (1 + i / 50) for i in range(500)])
    run = Unfolding(names={"loss": loss, "coco/AP": points([0.0] * 8, every=50, first=50)})
    assert first_step(run, AlarmKind.STUCK, "coco/AP", every=10, until=400) == 250


def test_a_metric_that_was_ever_anything_else_or_is_best_at_zero_is_not_stuck():
    assert not seen(curve_of("coco/AP", [0.001] + [0.0] * 20))
    assert not seen(curve_of("abs_rel", [0.0] * 20))


def test_the_accuracy_of_training_batches_may_be_zero_for_a_while():
    loss = curve_of("loss", [1 / (1 + i / 50) for i in range(40)])
    assert not seen(loss, curve_of("acc_pose", [0.0] * 40))
    assert not seen(loss, curve_of("train/acc", [0.0] * 10, every=4))
    assert seen(loss, curve_of("val/acc", [0.0] * 10, every=4))


# ---- no new checkpoints ---------------------------------------------------------------------------------------------


def test_a_run_that_saves_nothing_for_three_intervals_has_stalled():
    saved = tuple(Saved(step=i * 100, epoch=None, at=i * 600.0) for i in range(6))
    key = (AlarmKind.STALLED, "checkpoints")
    assert not seen(saved=saved, now=3000 + 1800)
    symptom = seen(saved=saved, now=3000 + 1801, last_row_at=3000.0)[key]
    assert symptom.numbers == {"waited": 1801.0, "usual": 600.0, "times": 1801 / 600}
    assert "no checkpoint for 30m1s, 3.0 × the usual 10m; the newest is at step 500" in symptom.message
    assert not seen(saved=saved, now=9e9, ended=True)
    assert not seen(saved=saved[:2], now=9e9)
    assert not seen(saved=saved, now=9e9, rule=HealthRule(stalled=None))


def test_a_stalled_run_says_whether_its_log_still_grows():
    saved = tuple(Saved(step=i, epoch=None, at=i * 600.0) for i in range(6))
    key = (AlarmKind.STALLED, "checkpoints")
    grows = seen(saved=saved, now=6000.0, last_row_at=5990.0)[key]
    stopped = seen(saved=saved, now=6000.0, last_row_at=3000.0)[key]
    assert "still grows: last row 10s ago" in grows.message
    assert "stopped as well: last row 50m ago" in stopped.message
    assert grows.causes != stopped.causes
    assert "no log" in seen(saved=saved, now=6000.0)[key].message


def test_a_run_that_falls_silent_at_the_end_of_its_schedule_has_not_stalled():
    saved = tuple(Saved(step=i, epoch=None, at=i * 600.0) for i in range(6))
    over = curve_of("lr", [1e-3 * (1 - i / 100) for i in range(101)])
    assert not seen(over, saved=saved, now=9000.0, last_row_at=3000.0)
    assert (AlarmKind.STALLED, "checkpoints") in seen(over, saved=saved, now=9000.0, last_row_at=8990.0)


def test_copies_saved_at_the_same_moment_and_pauses_seen_before_do_not_count():
    key = (AlarmKind.STALLED, "checkpoints")
    copies = tuple(Saved(step=i, epoch=None, at=i * 600.0 + j) for i in range(6) for j in (0.0, 1.0, 2.0))
    assert key not in seen(saved=copies, now=3002 + 1700.0)
    assert key in seen(saved=copies, now=3002 + 1900.0)
    paused = (0.0, 600.0, 1200.0, 5000.0, 5600.0)
    assert key not in seen(saved=tuple(Saved(step=i, epoch=None, at=at) for i, at in enumerate(paused)), now=5600 + 5000.0)


# ---- the whole ------------------------------------------------------------------------------------------------------


def test_what_is_ignored_or_switched_off_is_not_looked_at():
    spike = curve_of("loss_aux", [0.5] * 60 + [3.0])
    assert seen(spike)
    assert not seen(spike, rule=HealthRule(ignore=("*_aux",)))
    assert not seen(spike, rule=HealthRule(enabled=False))


@pytest.mark.parametrize("values", [
    [], [1.0], [math.nan], [0.0] * 700, [-1.0] * 700, [1e308, -1e308] * 400, [5e-324] * 700, [math.nan, 1.0] * 400,
    [0.0, 1e-300] * 300, [-0.5 + 0.001 * i for i in range(700)],
])
@pytest.mark.parametrize("name", ["loss", "val_loss", "val/AP", "fid", "lr"])
def test_no_curve_however_odd_makes_it_fail(name, values):
    for at in ({"step": True}, {"epoch": True}, {}):
        odd = [LogPoint(step=i if "step" in at else None, epoch=float(i) if "epoch" in at else None, value=v)
               for i, v in enumerate(values)]
        odd_curve = Curve(name=name, recent=odd[-RECENT:], history=odd[-HISTORY:], summary=summarise(odd))
        others = (curve_of("train_loss", [1.0] * 50), curve_of("lr", [0.0, 1.0]), curve_of("val/loss", [0.1] * 20))
        for symptom in seen(odd_curve, *others).values():
            assert symptom.message


def test_runs_that_count_only_epochs_are_examined_as_well():
    values = [1.0 / (1 + i) + 0.2 for i in range(80)] + [5.0]
    by_epoch = [LogPoint(step=None, epoch=float(i), value=v) for i, v in enumerate(values)]
    symptom = seen(Curve(name="train_loss", recent=by_epoch, history=by_epoch, summary=summarise(by_epoch)))[
        AlarmKind.LOSS_SPIKE, "train_loss"]
    assert (symptom.step, symptom.epoch) == (None, 80.0)
    assert "at epoch 80" in symptom.message
