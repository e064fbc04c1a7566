"""The project's own evaluation: captions of a CSV's panoramas against those written in it.

It knows of ckptwatch only how to talk to it: lines of JSON on standard output. {"progress", "total"} while it works,
{"sample": …} for each pair, and the metrics at the end.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from model import encode, load
from panoramas import read_split, views

HERE = Path(__file__).parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint.")
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--metadata", type=Path)
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--csv-input", type=Path, required=True)
    parser.add_argument("--max-samples", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    return parser.parse_args()


def token_f1(prediction: str, target: str) -> float:
    """Harmonic mean of precision and recall of the words, as SQuAD has it."""
    said, wanted = prediction.split(), target.split()
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def mean_with_error(values: list[float]) -> dict[str, float]:
    """Mean, and the bounds of its 95 % interval by the normal approximation."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
    error = 1.96 * (variance / len(values)) ** 0.5
    return {"value": mean, "low": mean - error, "high": mean + error}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    if args.metadata:
        told = json.loads(args.metadata.read_text())
        print(f"{told['experiment_name']}, stage {told['stage']}, {told['model_config']['crop']}", file=sys.stderr)
    model, rows = load(HERE / "networks", args.ckpt, args.lora), read_split(args.csv_input, args.max_samples)
    f1, exact, loss = [], [], 0.0
    for start in range(0, len(rows), args.batch_size):
        batch = rows[start:start + args.batch_size]
        seen = views(torch.stack([row.picture for row in batch]))
        with torch.no_grad():
            loss += float(model.loss(seen, encode([row.response for row in batch]))) * len(batch)
        for row, said in zip(batch, model.describe(seen), strict=True):
            f1.append(token_f1(said, row.response))
            exact.append(float(said == row.response))
            pair = {"prediction": said, "target": row.response, "image": row.url, "f1": round(f1[-1], 3)}
            print(json.dumps({"sample": pair}))
        print(json.dumps({"progress": len(f1), "total": len(rows), "stage": "captioning"}), flush=True)
    print(json.dumps({"token_f1": mean_with_error(f1), "exact_match": mean_with_error(exact), "val_loss": loss / len(rows),
                      "n": len(rows)}))


if __name__ == "__main__":
    main()
