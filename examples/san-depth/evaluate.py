"""Evaluate a checkpoint on scenes it was not trained on. The last line of the output is what ckptwatch reads."""

import argparse
import json
import sys

import torch
from network import DepthNet, depth_metrics
from scenes import scenes

BATCH = 16


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


@torch.no_grad()
def main() -> int:
    args = parse_args()
    torch.set_num_threads(args.threads)
    model = DepthNet().to(args.device).eval()
    model.load_state_dict(torch.load(args.ckpt, map_location=args.device, weights_only=True)["model"])
    picture, depth, sparse = (part.to(args.device) for part in scenes(3, args.scenes))
    alone, joint = [], []
    for begin in range(0, args.scenes, BATCH):
        rows = slice(begin, begin + BATCH)
        alone.append(model(picture[rows]))
        joint.append(model(picture[rows], sparse[rows]))
        print(json.dumps({"progress": min(begin + BATCH, args.scenes), "total": args.scenes}), flush=True)
    metrics = depth_metrics(torch.cat(alone), depth)
    metrics["abs_rel_rgbd"] = depth_metrics(torch.cat(joint), depth)["abs_rel"]
    print(json.dumps({**metrics, "n": args.scenes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
