"""SHA-256 of the weights after a few steps of the default run, to prove that a change of the code changes no number.

    python benchmarks/same_weights.py                        # the digests of this tree, with 1 and 2 threads
    python benchmarks/same_weights.py --base OTHER/src       # compares them with another source tree's

The run is `simclr train` on the photographs with every default but the scores between epochs, on the CPU. Digests of
different machines, numbers of threads or versions of torch differ: sums are rounded in another order. So both trees
train here, one after the other. Exit code 0: all equal; 1: a digest differs; 2: a run failed.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

OURS = Path(__file__).resolve().parents[1] / "src"
OVERRIDES = ("trainer.accelerator=cpu", "callbacks.online.every_n_epochs=0", "hydra.run.dir=run")


def digest(state: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the tensors of a state_dict: names, dtypes, shapes and bytes, by sorted name."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def train(source: Path, *, steps: int, threads: int) -> str:
    """Train `steps` steps with the package in the folder `source`; return the digest of the weights in last.ckpt."""
    if not (source / "simclr_lightning").is_dir():
        sys.exit(f"error: no package simclr_lightning in {source}; give the folder src of a checkout")
    environment = {**os.environ, "PYTHONPATH": str(source.resolve()), "WANDB_MODE": "offline"}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "simclr_lightning.cli", "train", *OVERRIDES, f"trainer.max_steps={steps}"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(f"error: the run with {source} failed:\n{done.stdout}{done.stderr}", file=sys.stderr)
            sys.exit(2)
        last = torch.load(Path(folder) / "run/checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    assert last["global_step"] == steps
    return digest(last["state_dict"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (default 20)")
    parser.add_argument("--source", type=Path, default=OURS, help="a folder with the package (default: this tree's)")
    parser.add_argument("--base", type=Path, help="a second such folder, to compare with")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default 1 2)")
    asked = parser.parse_args()
    same = True
    for threads in asked.threads:
        found = train(asked.source, steps=asked.steps, threads=threads)
        print(f"threads {threads}: {found}", flush=True)
        if asked.base:
            base = train(asked.base, steps=asked.steps, threads=threads)
            print(f"threads {threads}: {base} {'equal' if base == found else 'differs'} (--base)", flush=True)
            same &= base == found
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
