"""SHA-256 of the weights after a few steps of the default run, to prove that a change of the code changes no number.

    python benchmarks/same_weights.py                        # the digests of this tree, with 1 and 2 threads
    python benchmarks/same_weights.py --base OTHER/src       # compares them with another source tree's

The run is `simclr train` on the photographs with every default but the scores between epochs, on the CPU; it is ended
when the checkpoint of the last step is written. Digests of different machines, numbers of threads or versions of torch
differ: sums are rounded in another order. So both trees train here, one after the other. Exit code 0: all
equal; 1: a digest differs or a run failed.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
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
    environment = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "simclr_lightning.cli", "train", *OVERRIDES, f"trainer.max_steps={steps}"]
    with tempfile.TemporaryDirectory() as folder:
        log, last = Path(folder, "log"), Path(folder, "run/checkpoints/last.ckpt")
        with log.open("w") as output:
            run = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        while (ended := run.poll()) is None and _step(last) < steps:
            time.sleep(0.2)
        run.kill()  # before the final scores and pictures, which are not needed
        run.wait()
        if ended or _step(last) != steps:
            raise SystemExit(f"error: the run with {source} failed:\n{log.read_text()}")
        return digest(torch.load(last, map_location="cpu", weights_only=True)["state_dict"])


def _step(path: Path) -> int:
    return torch.load(path, map_location="cpu", weights_only=True)["global_step"] if path.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (default 20)")
    parser.add_argument("--source", type=Path, default=OURS, help="a folder with the package (default: this tree's)")
    parser.add_argument("--base", type=Path, help="a second such folder, to compare with")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default 1 2)")
    asked = parser.parse_args()
    for tree in filter(None, (asked.source, asked.base)):
        if not (tree / "simclr_lightning").is_dir():  # Python would import the installed package instead
            parser.error(f"no package simclr_lightning in {tree}; give the folder src of a checkout")
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
