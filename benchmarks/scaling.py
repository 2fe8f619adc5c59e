"""Step time of ResNet-50 at 224 pixels on 8 to 1024 GPUs: a model, from the rate of one GPU and the bytes counted.

    python benchmarks/scaling.py                                   # table and scaling.json; seconds
    python benchmarks/scaling.py --pairs-per-second 3100 --network 25 --picture docs/scaling.png

Nothing here was run on many GPUs. The rate of one GPU comes from gpu.json where that benchmark has run, else it is the
assumption that --pairs-per-second states. Bytes of the loss are those of loss_distributed.json, bytes of gradients and
of BatchNorm's statistics follow from the network. Two questions are asked of every number of GPUs: the paper's batch of
4096 shared by all (strong scaling), and 64 images on each (weak scaling); each with BatchNorm synchronised over all
GPUs, and over the GPUs of a node. The assumptions are printed with the result.
"""

import argparse
import datetime
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loss_distributed import COMPUTED, computed, sent
from simclr_lightning import Projector, resnet

HERE = Path(__file__).parent
MB = 1e6
BUCKET = 25 * 2**20  # DDP's buckets of gradients: the last one has no backward pass left to hide behind
BACKWARD = 2 / 3  # of a step's compute
PARTS = ("compute", "loss", "gather of z", "BatchNorm", "gradients")


@dataclass(frozen=True)
class Machine:
    """What is assumed of the hardware."""

    pairs_per_second: float  # of one GPU: encoder and projector, forward, backward, optimiser
    measured: bool  # whether that rate is gpu.json's
    tflops: float = 60.0  # of one GPU for the float32 products of the loss (TF32 off)
    gpus_a_node: int = 8
    link: float = 350.0  # GB/s that a GPU sends within its node
    network: float = 45.0  # GB/s that a GPU sends between nodes
    link_latency: float = 3.0  # µs a step of a ring within a node
    network_latency: float = 8.0  # µs a step between nodes


@dataclass(frozen=True)
class Network:
    """What is communicated for a network: parameters, and the channels of every BatchNorm."""

    parameters: int
    channels: tuple[int, ...]


def resnet50() -> Network:
    with torch.device("meta"):
        encoder = resnet(50)
        model = nn.Sequential(encoder, Projector(encoder.feature_dim))
    norms = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    return Network(sum(p.numel() for p in model.parameters()), tuple(norms))


def hops(world: int, machine: Machine) -> tuple[int, int]:
    """Steps once around a ring through all GPUs, node after node: within nodes, and between them."""
    nodes = math.ceil(world / machine.gpus_a_node)
    between = nodes if nodes > 1 else 0
    return max(0, world - 1 - between), between


def ring(sent_bytes: float, world: int, machine: Machine, *, rounds: int) -> float:
    """Seconds of a ring collective in which every rank sends ``sent_bytes``, ``rounds`` times around.

    The slowest link sets the pace of all; every step around the ring waits for one latency.
    """
    if world == 1:
        return 0.0
    within, between = hops(world, machine)
    pace = machine.network if between else machine.link
    latency = within * machine.link_latency + between * machine.network_latency
    return sent_bytes / (pace * 1e9) + rounds * latency * 1e-6


def all_reduce(size: float, world: int, machine: Machine, *, buckets: int) -> float:
    """Seconds to sum ``size`` bytes over all ranks in ``buckets``: by rings or by trees, whichever is faster.

    A ring sends the least, a double binary tree twice the bytes once, in a logarithm of latencies.
    """
    ringed = ring(2 * (world - 1) / world * size, world, machine, rounds=2 * buckets)
    return min(ringed, small(2 * size, world, machine, times=2 * buckets))


def small(sent_bytes: float, world: int, machine: Machine, *, times: int) -> float:
    """Seconds of a collective along a tree, whose depth is a logarithm; ``times`` up or down it."""
    if world == 1:
        return 0.0
    nodes = math.ceil(world / machine.gpus_a_node)
    within = math.ceil(math.log2(min(world, machine.gpus_a_node)))
    depth = within * machine.link_latency + math.ceil(math.log2(nodes)) * machine.network_latency
    pace = machine.network if nodes > 1 else machine.link
    return sent_bytes / (pace * 1e9) + times * depth * 1e-6


def loss_bytes(world: int, pairs: int) -> float:
    """Bytes that a rank sends for the loss; loss_distributed.py counts them and proves this formula."""
    return sum(sent(calls, world) for calls in computed(world, pairs)["ours"].values())


def step(world: int, pairs: int, group: int, machine: Machine, network: Network) -> dict[str, float]:
    """Seconds of the parts of a step that are not hidden, for ``pairs`` images on all ``world`` GPUs.

    BatchNorm, over ``group`` GPUs: an all-gather of mean, variance and count forward, an all-reduce of two sums
    backward, each waited for. Gradients: all-reduced in buckets while the backward pass runs; what exceeds it is seen,
    and so is the last bucket.
    """
    compute = pairs / world / machine.pairs_per_second
    loss = 6 * (2 * pairs) ** 2 * 128 / world / (machine.tflops * 1e12)
    gather = ring(loss_bytes(world, pairs), world, machine, rounds=2) + small(0, world, machine, times=1)
    norm = 0.0
    for channels in network.channels:
        forward, backward = 4 * (2 * channels + 1), 4 * 2 * channels
        norm += small((group - 1) * forward, group, machine, times=1)
        norm += small(2 * (group - 1) / group * backward, group, machine, times=2)
    size = 4 * network.parameters
    buckets = math.ceil(size / BUCKET)
    whole = all_reduce(size, world, machine, buckets=buckets)
    exposed = max(whole - BACKWARD * compute, whole / buckets)
    return dict(zip(PARTS, (compute, loss, gather, norm, exposed), strict=True))


def efficiency(parts: dict[str, float]) -> float:
    """Share of the step in which the encoder computes: 1 is what one GPU gives, times their number."""
    return parts["compute"] / sum(parts.values())


def check_counts() -> None:
    """The formula of the loss's bytes is what was counted."""
    saved = json.loads((HERE / "loss_distributed.json").read_text())
    for row in saved["rows"]:
        if row["method"] == "ours":
            found = loss_bytes(row["world"], saved["pairs"])
            assert found == row["forward"] + row["backward"], row


def rate_of_one(given: float | None) -> tuple[float, bool]:
    """The rate of one GPU and whether it was measured: given, gpu.json's ResNet-50 at 224, or an estimate."""
    if given is not None:
        return given, False
    path = HERE / "gpu.json"
    if path.exists():
        wanted = ("bare step", "resnet50", 224)
        rows = json.loads(path.read_text())["rows"]
        found = [r["images_per_second"] for r in rows if (r["task"], r.get("model"), r.get("size")) == wanted]
        if found:
            return max(found), True
    return 2700.0, False


def rows(machine: Machine, network: Network, batch: int, each: int) -> list[dict[str, Any]]:
    found = []
    for scaling, pairs_of in (("strong", lambda world: batch), ("weak", lambda world: each * world)):
        for norm in ("all GPUs", "node"):
            for world in COMPUTED:
                group = world if norm == "all GPUs" else min(world, machine.gpus_a_node)
                parts = step(world, pairs_of(world), group, machine, network)
                total = sum(parts.values())
                found.append(
                    {
                        "scaling": scaling,
                        "batch_norm": norm,
                        "gpus": world,
                        "batch": pairs_of(world),
                        "ms": {name: round(1e3 * seconds, 4) for name, seconds in parts.items()},
                        "step_ms": round(1e3 * total, 3),
                        "images_per_second": round(pairs_of(world) / total),
                        "efficiency": round(efficiency(parts), 4),
                    }
                )
    return found


def assumptions(machine: Machine, network: Network) -> list[str]:
    source = "measured, gpu.json" if machine.measured else "assumed, not measured"
    return [
        f"one GPU: {machine.pairs_per_second:,.0f} images/s of encoder and projector ({source}), at any batch",
        f"ResNet-50 and projector: {network.parameters:,} parameters, gradients in float32; {len(network.channels)} "
        f"BatchNorm layers, {sum(network.channels):,} channels",
        f"{machine.gpus_a_node} GPUs a node; a GPU sends {machine.link:g} GB/s in its node, {machine.network:g} GB/s "
        "between nodes, with no other traffic",
        f"latency of a step: {machine.link_latency:g} µs in a node, {machine.network_latency:g} µs between nodes",
        "gathers of z are rings through all GPUs, whose slowest link sets the pace; BatchNorm's collectives are trees; "
        "gradients take the faster of both",
        f"gradients overlap the backward pass ({BACKWARD:.0%} of the compute); BatchNorm and the loss overlap nothing",
        f"the loss's products: 6 M^2 D / W at {machine.tflops:g} TFLOP/s; data, stragglers and failures are left out",
    ]


def table(found: list[dict[str, Any]]) -> str:
    head = ("scaling", "BatchNorm over", "GPUs", "batch", *(f"{part}, ms" for part in PARTS), "images/s", "efficiency")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in found:
        times = (f"{row['ms'][part]:.2f}" for part in PARTS)
        cells = (row["scaling"], row["batch_norm"], row["gpus"], row["batch"], *times)
        last = (f"{row['images_per_second']:,}", f"{row['efficiency']:.0%}")
        lines.append("| " + " | ".join(map(str, (*cells, *last))) + " |")
    return "\n".join(lines)


def picture(found: list[dict[str, Any]], machine: Machine, path: Path) -> None:
    """Efficiency against the number of GPUs, and where a step of weak scaling goes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for scaling, style in (("weak", "-"), ("strong", "--")):
        for norm, marker in (("all GPUs", "o"), ("node", "s")):
            points = [r for r in found if (r["scaling"], r["batch_norm"]) == (scaling, norm)]
            label = f"{scaling}, BatchNorm over {'all GPUs' if norm == 'all GPUs' else 'a node'}"
            left.semilogx(
                [r["gpus"] for r in points], [r["efficiency"] for r in points], style, marker=marker, label=label
            )
    left.set(
        xlabel="GPUs", ylabel="efficiency", ylim=(0, 1.02), title="modelled, not run: share of time in the encoder"
    )
    left.set_xticks(COMPUTED, map(str, COMPUTED))
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    points = [r for r in found if (r["scaling"], r["batch_norm"]) == ("weak", "all GPUs")]
    bottom = [0.0] * len(points)
    for part in PARTS:
        heights = [r["ms"][part] for r in points]
        right.bar([str(r["gpus"]) for r in points], heights, bottom=bottom, label=part)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    source = "measured" if machine.measured else "assumed"
    right.set(
        xlabel="GPUs",
        ylabel="ms a step",
        title=f"{points[0]['batch'] // points[0]['gpus']} images a GPU, "
        f"{machine.pairs_per_second:,.0f} images/s a GPU {source}",
    )
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs-per-second", type=float, help="of one GPU")
    parser.add_argument("--batch", type=int, default=4096, help="global batch of strong scaling")
    parser.add_argument("--each", type=int, default=64, help="images a GPU of weak scaling")
    for name in ("tflops", "link", "network", "link_latency", "network_latency"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Machine, name))
    parser.add_argument("--gpus-a-node", type=int, default=Machine.gpus_a_node)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--picture", type=Path, help="docs/scaling.png")
    given = vars(parser.parse_args())
    out, image, batch, each = (given.pop(name) for name in ("out", "picture", "batch", "each"))
    rate, measured = rate_of_one(given.pop("pairs_per_second"))
    machine, network = Machine(rate, measured, **given), resnet50()
    check_counts()
    found = rows(machine, network, batch, each)
    print(table(found), "assumptions:", *(f"- {text}" for text in assumptions(machine, network)), sep="\n")
    head = {"date": datetime.date.today().isoformat(), "machine": asdict(machine)}
    out.write_text(json.dumps({**head, "assumptions": assumptions(machine, network), "rows": found}, indent=1) + "\n")
    if image:
        picture(found, machine, image)


if __name__ == "__main__":
    main()
