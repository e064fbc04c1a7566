"""What a logged name is about, by its words: a loss of training or of validation, a metric, or neither."""

import re
from enum import StrEnum

from ckptwatch.core.logged import direction
from ckptwatch.model import Mode


class NameKind(StrEnum):
    TRAINING_LOSS = "training_loss"
    VALIDATION_LOSS = "validation_loss"
    METRIC = "metric"  # which direction is better is known
    OTHER = "other"    # learning rates, times, memory, gradients, counters, and what no word tells


# Split at everything but letters and digits, and where a small letter meets a capital: `errD`, `trainLoss`; 3d is one word.
_WORD = re.compile(r"\d+[dD](?![a-zA-Z])|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_VALIDATION = frozenset({"val", "valid", "validation", "eval", "evaluation", "test", "dev"})
_TRAINING = frozenset({"train", "training"})
_OTHER = frozenset({
    "lr", "lrs", "time", "times", "timing", "eta", "memory", "mem", "gpu", "cpu", "grad", "gradient", "gradients",
    "gradnorm", "norm", "throughput", "speed", "fps", "runtime", "seconds", "second", "sec", "hours", "minutes", "ms",
    "epoch", "epochs", "step", "steps", "iter", "iters", "iteration", "iterations", "momentum", "decay", "scale",
    "scaler", "weight", "weights", "tokens", "flops", "flos", "resources", "progress", "tick", "kimg", "beta", "betas",
    "temperature", "num", "count", "batch", "size", "samples", "timestamp", "wall", "rank", "seed",
})
# These may stand beside "loss" without making it anything else: `step_loss`, `train_loss_epoch`, `batch_loss`.
_BESIDE_A_LOSS = frozenset({
    "epoch", "epochs", "step", "steps", "iter", "iteration", "batch", "norm", "grad", "gradient", "rank", "size"})
_TERMS = frozenset({"nll", "ce", "bce", "mse", "mae", "kl", "kld", "elbo", "err", "l1", "l2", "error", "ppl", "perplexity"})
_ADVERSARIAL = frozenset({
    "gan", "wgan", "adv", "adversarial", "disc", "discriminator", "gen", "generator", "critic", "d", "g", "fake", "real"})
_RISING = frozenset({"kl", "kld", "commit", "commitment", "entropy", "vq", "prior", "rate"})
_FILLER = _VALIDATION | _TRAINING | frozenset({"epoch", "step", "iter", "batch", "avg", "mean", "running", "total", "all",
                                               "sum", "overall", "smoothed"})


def words_of(name: str) -> tuple[str, ...]:
    """The words of a logged name in small letters: "val/mAP50-95(B)" is val, map, 50, 95, b."""
    known = name[:200].replace("mAP", "Map").replace("mIoU", "Miou").replace("IoU", "Iou")
    return tuple(w.lower() for w in _WORD.findall(known))


def kind_of(name: str) -> NameKind:
    """What a name is about. "loss_scale" is no loss, "train/mse" is one, "val/mse" is a metric."""
    words = set(words_of(name))
    is_loss = any(w.startswith("loss") or w.endswith("loss") for w in words)
    if words & (_OTHER - (_BESIDE_A_LOSS if is_loss else frozenset())):
        return NameKind.OTHER
    if is_loss or (words & _TERMS and words & _TRAINING) or ("err" in words and words & _ADVERSARIAL):
        return NameKind.VALIDATION_LOSS if words & _VALIDATION else NameKind.TRAINING_LOSS
    return NameKind.METRIC if better(name) is not None else NameKind.OTHER


def better(name: str) -> Mode | None:
    """Which direction is better, by the whole name or else by its words: "metrics/mAP50(B)" holds the word map."""
    return direction(name) or direction("_".join(words_of(name)))


def is_validation(name: str) -> bool:
    return bool(_VALIDATION & set(words_of(name)))


def is_training(name: str) -> bool:
    return bool(_TRAINING & set(words_of(name)))


def is_learning_rate(name: str) -> bool:
    words = words_of(name)
    return bool({"lr", "lrs"} & set(words)) or ("learning" in words and "rate" in words)


def is_adversarial(name: str) -> bool:
    """One of two losses that work against each other: neither falls for long, and a rise means nothing by itself."""
    return bool(_ADVERSARIAL & set(words_of(name)))


def may_rise(name: str) -> bool:
    """A term that grows while a model learns: what a latent code costs, and the like."""
    return bool(_RISING & set(words_of(name)))


def term_of(name: str) -> tuple[str, ...]:
    """What is left without the words for whose loss it is: ("box", "loss") for "train/box_loss" and "val/box_loss"."""
    return tuple(w for w in words_of(name) if w not in _FILLER)


def is_total(name: str) -> bool:
    """The loss itself rather than one of its terms: "loss", "train/loss_epoch", "total_loss"."""
    return term_of(name) in {("loss",), ("losses",)}
