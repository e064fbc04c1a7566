"""Training runs made up point by point, healthy ones of many kinds, and their curves as the store would give them."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckptwatch.core.health import Saved
from ckptwatch.core.series import RECENT, Curve, LogPoint, Summary, summarise

EPOCH = 50  # steps


def points(values: Sequence[float], *, every: int = 1, first: int = 0) -> list[LogPoint]:
    """One for each value, `every` steps apart."""
    return [LogPoint(step=first + i * every, epoch=(first + i * every) / EPOCH, value=v) for i, v in enumerate(values)]


def share(value: float) -> float:
    """Between 0 and 1."""
    return max(0.0, min(1.0, value))


def curve(name: str, seen: Sequence[LogPoint], summary: Summary | None = None) -> Curve:
    recent = seen[-RECENT:]
    return Curve(name=name, recent=recent, history=recent, summary=summary or summarise(seen))


def curve_of(name: str, values: Sequence[float], *, every: int = 1) -> Curve:
    return curve(name, points(values, every=every))


@dataclass
class Unfolding:
    """A run that is looked at while it grows."""

    names: Mapping[str, Sequence[LogPoint]]
    saves: Sequence[Saved] = ()
    seconds: float = 1.0  # for one step
    _done: dict[str, int] = field(default_factory=dict)
    _sums: dict[str, Summary] = field(default_factory=dict)

    def at(self, step: int) -> tuple[list[Curve], list[Saved]]:
        """What is known at a step. Steps must not fall."""
        found = []
        for name, all_points in self.names.items():
            upto = self._done.get(name, 0)
            begin = upto
            while upto < len(all_points) and (all_points[upto].step or 0) <= step:
                upto += 1
            self._done[name] = upto
            self._sums[name] = summarise(all_points[begin:upto], self._sums.get(name))
            if upto:
                found.append(curve(name, all_points[:upto], self._sums[name]))
        return found, [s for s in self.saves if s.at <= step * self.seconds]


class Noise:
    """Kinds of noise, all multiplicative with a median of 1."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def normal(self, width: float) -> float:
        return math.exp(self._chance.gauss(0.0, width))

    def heavy(self, width: float, freedom: int = 5) -> float:
        """Student's t in logarithms."""
        t = self._chance.gauss(0, 1) / math.sqrt(self._chance.gammavariate(freedom / 2, 2) / freedom)
        return math.exp(max(-3.0, min(3.0, width * t)))


def classifier(chance: random.Random, steps: int) -> Unfolding:
    """A loss that decays to a floor, its terms, an accuracy that saturates, a validation loss that levels off."""
    noise, tau, floor = Noise(chance), chance.uniform(60, 400), chance.uniform(0.05, 0.5)
    width, heavy = chance.uniform(0.02, 0.15), chance.random() < 0.5
    draw = (lambda: noise.heavy(width)) if heavy else (lambda: noise.normal(width))
    fit = [floor + 2.3 * math.exp(-i / tau) for i in range(steps)]
    every = chance.choice((10, 20, 50))
    validation = range(every, steps, every)
    gap = chance.uniform(0.02, 0.2)
    top, jitter = chance.uniform(0.6, 0.95), chance.uniform(0.002, 0.015)
    return Unfolding(names={
        "loss": points([f * draw() for f in fit]),
        "loss_cls": points([0.7 * f * draw() for f in fit]),
        "loss_bbox": points([0.3 * f * draw() for f in fit]),
        "lr": points([1e-3 * min(1, (i + 1) / 50) * 0.5 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]),
        "grad_norm": points([abs(3 * draw()) for _ in range(steps)]),
        "val/loss": points([(fit[i] + gap) * noise.normal(0.02) for i in validation], every=every, first=every),
        "val/acc": points([share(top * (1 - math.exp(-i / tau)) + chance.gauss(0, jitter)) for i in validation],
                          every=every, first=every),
    }, saves=saves(chance, steps))


def detector(chance: random.Random, steps: int) -> Unfolding:
    """Several terms, steps of the learning rate, an AP that stays near 0 for a while."""
    noise, width = Noise(chance), chance.uniform(0.03, 0.2)
    drops = (int(0.6 * steps), int(0.85 * steps))
    late = chance.uniform(20, 150)

    def level(i: int) -> float:
        return (0.4 + 1.2 * (1 + i / 30) ** -0.7) * 0.8 ** sum(i >= d for d in drops)

    every = chance.choice((25, 50))
    validation = range(every, steps, every)
    terms = {name: chance.uniform(0.1, 0.6) for name in ("loss_kpt", "loss_cls", "loss_iou")}
    names = {name: points([part * level(i) * noise.normal(width) for i in range(steps)]) for name, part in terms.items()}
    total = [sum(names[name][i].value for name in terms) for i in range(steps)]
    ap = [max(0.0, 0.72 / (1 + math.exp(-(i - 2 * late) / late)) - 0.09 + chance.gauss(0, 0.01)) for i in validation]
    return Unfolding(names={
        "loss": points(total), **names,
        "lr": points([2e-4 * 0.1 ** sum(i >= d for d in drops) for i in range(steps)]),
        "acc_pose": points([share(0.9 * (1 - math.exp(-i / 100)) + chance.gauss(0, 0.05)) for i in range(steps)]),
        "coco/AP": points(ap, every=every, first=every),
        "coco/AR": points([min(1.0, a + 0.08 + chance.gauss(0, 0.006)) for a in ap], every=every, first=every),
    }, saves=saves(chance, steps))


def diffusion(chance: random.Random, steps: int) -> Unfolding:
    """A loss of great variance, from scratch or fine-tuned (flat from the start); FID of some checkpoints."""
    noise, width = Noise(chance), chance.uniform(0.3, 0.7)
    fall = chance.choice((0.0, 0.0, 0.3, 1.0))
    every = chance.choice((50, 100))
    evaluated = range(every, steps, every)
    heavy = chance.random() < 0.3
    fid = [(8 + 200 * math.exp(-i / chance.uniform(120, 160))) * noise.normal(0.02) for i in evaluated]
    return Unfolding(names={
        "train_loss": points([(0.1 + fall * math.exp(-i / 60)) * (noise.heavy(width / 2) if heavy else noise.normal(width))
                              for i in range(steps)]),
        "lr": points([1e-4] * steps),
        "evaluation/fid": points(fid, every=every, first=every),
        "evaluation/clip_score": points([0.3 - 0.05 * math.exp(-i / 200) + chance.gauss(0, 0.003) for i in evaluated],
                                        every=every, first=every),
    }, saves=saves(chance, steps))


def adversaries(chance: random.Random, steps: int) -> Unfolding:
    """Losses of generator and discriminator that swing around a level, the one slowly rising."""
    noise, rise, period = Noise(chance), chance.uniform(0.0, 2.0), chance.uniform(40, 300)
    phase = chance.uniform(0, 6)
    swing = [math.sin(phase + i / period * 2 * math.pi) for i in range(steps)]
    wander, path = 0.0, []
    for _ in range(steps):
        wander = 0.97 * wander + chance.gauss(0, 0.05)
        path.append(wander)
    hinge = chance.random() < 0.3
    g = [(1 + rise * i / steps) * math.exp(0.3 * s + p) * noise.normal(0.15)
         for i, (s, p) in enumerate(zip(swing, path, strict=True))]
    if hinge:
        g = [chance.gauss(0.3 * s, 0.3) for s in swing]
    d = [1.2 * math.exp(-0.2 * s - p) * noise.normal(0.15) for s, p in zip(swing, path, strict=True)]
    return Unfolding(names={"Loss/G/loss": points(g), "Loss/D/loss": points(d)}, saves=saves(chance, steps))


def restarts(chance: random.Random, steps: int) -> Unfolding:
    """Warm restarts of the learning rate, each with a bump in the loss and a dip of the accuracy."""
    noise, width, period = Noise(chance), chance.uniform(0.03, 0.12), chance.choice((150, 200, 300))
    bump, base = chance.uniform(0.2, 0.7), chance.uniform(0.2, 0.6)
    every = chance.choice((10, 25))
    logged = chance.random() < 0.7
    bump = bump if logged else min(bump, 0.4)

    def level(i: int) -> float:
        since = i % period
        warm = bump * (1 - math.exp(-since / 5)) * math.exp(-since / 40) if i >= period else 0.0
        return (base + 1.5 * math.exp(-i / 80)) * (1 + warm)

    def accuracy(i: int) -> float:
        dip = 0.04 * math.exp(-(i % period) / 30) if i >= period else 0.0
        return share(0.85 * (1 - math.exp(-i / 90)) - dip + chance.gauss(0, 0.006))

    validation = range(every, steps, every)
    names = {"train/loss": points([level(i) * noise.normal(width) for i in range(steps)]),
             "val/accuracy": points([accuracy(i) for i in validation], every=every, first=every)}
    if logged:
        names["lr-AdamW"] = points([1e-5 + 5e-4 * (1 + math.cos(math.pi * (i % period) / period)) for i in range(steps)])
    return Unfolding(names=names, saves=saves(chance, steps))


def language(chance: random.Random, steps: int) -> Unfolding:
    """A power law after warm-up, or fine-tuning that gains little; perplexity and validation loss level off."""
    noise, tuned, width = Noise(chance), chance.random() < 0.4, chance.uniform(0.02, 0.12)
    high, low, power = (1.6, chance.uniform(0.9, 1.1), 0.5) if tuned else (10.8, chance.uniform(2.0, 3.0), 0.4)
    every = chance.choice((50, 100))
    fit = [low + (high - low) * (1 + i / 20) ** -power for i in range(steps)]
    validation = range(every, steps, every)
    return Unfolding(names={
        "loss": points([f * noise.normal(width) for f in fit]),
        "learning_rate": points([3e-4 * min(1.0, i / 100) * (1 - 0.9 * i / steps) for i in range(steps)]),
        "grad_norm": points([noise.heavy(0.4, 3) for _ in range(steps)]),
        "eval_loss": points([(fit[i] * 1.03) * noise.normal(0.004) for i in validation], every=every, first=every),
    }, saves=saves(chance, steps))


def depth(chance: random.Random, steps: int) -> Unfolding:
    """One row for each epoch, steps of the trainer far apart: errors that fall, a share that rises."""
    noise, tau = Noise(chance), chance.uniform(30, 150)
    down = [0.06 + 0.3 * math.exp(-i / tau) for i in range(steps)]
    return Unfolding(names={
        "train_loss": points([2 * d * noise.normal(0.03) for d in down]),
        "val_loss": points([(2.4 * d + 0.03) * noise.normal(0.03) for d in down]),
        "abs_rel": points([d * noise.normal(0.04) for d in down]),
        "rmse": points([40 * d * noise.normal(0.04) for d in down]),
    }, saves=saves(chance, steps))


KINDS = (classifier, detector, diffusion, adversaries, restarts, language, depth)


def saves(chance: random.Random, steps: int) -> list[Saved]:
    """Checkpoints at irregular intervals, some with a copy saved right after."""
    found: list[Saved] = []
    usual, step = chance.uniform(20, 80), 0.0
    spread = chance.uniform(0.02, 0.3)
    while step < steps:
        step += usual * chance.lognormvariate(0, spread)
        found.append(Saved(step=int(step), epoch=None, at=step))
        if chance.random() < 0.3:
            found.append(Saved(step=int(step), epoch=None, at=step + 0.5))
    return [s for s in found if s.at < steps]
