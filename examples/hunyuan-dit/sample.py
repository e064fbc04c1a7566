r"""Draws pictures with a checkpoint, as HunyuanDiT's `sample_t2i.py` does: a process of its own, which ckptwatch starts.

    python sample.py --dit-weight runs/000-driving/checkpoints/final.pt --load-key ema --prompts prompts.txt --count 8 \
        --out drawn

Writes OUT/000000.png …; picture i is made from line i of the prompts and seed + i.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw pictures with a checkpoint.")
    parser.add_argument("--dit-weight", type=Path, required=True, metavar="PATH", help="checkpoint directory, or a file")
    parser.add_argument("--load-key", choices=["ema", "module", ""], default="", help="weights in it; '' means ema")
    parser.add_argument("--prompts", type=Path, required=True, help="text file, one prompt a line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--infer-steps", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    prompts = [line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        parser.error(f"{args.prompts} holds no prompts")

    # After the arguments: torch takes seconds to import, and a mistyped option should not.
    import torch
    from dit import DiT, model_states
    from PIL import Image

    torch.set_num_threads(1)
    with torch.serialization.safe_globals([argparse.Namespace]):
        states = torch.load(model_states(args.dit_weight), map_location="cpu", mmap=True, weights_only=True)
    model = DiT()
    model.load_state_dict(states[args.load_key or "ema"])
    model.to(args.device).eval()
    captions = [prompts[i % len(prompts)] for i in range(args.count)]
    pictures = model.draw(captions, [args.seed + i for i in range(args.count)], args.infer_steps)
    args.out.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(args.out / f"{index:06d}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
