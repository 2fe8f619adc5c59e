"""Step time of ResNet-50 at 224 pixels on 8 to 1024 GPUs: a model, from the rate of one GPU and the bytes counted.

    python benchmarks/scaling.py                                   # seconds
    python benchmarks/scaling.py --pairs-per-second 3100 --network 25 --picture docs/scaling.png

This script computes and runs nothing on GPUs. The rate of one GPU is --pairs-per-second, else the one in gpu.json, else
an assumption. The bytes of the loss are those of loss_distributed.json; the bytes of gradients and of BatchNorm's
statistics follow from the network. Two cases are computed for every number of GPUs: the paper's batch of 4096 shared by
all (strong scaling), and 64 images on each (weak scaling). Both have BatchNorm synchronized over all GPUs, and over the
GPUs of a node. The script prints its assumptions.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _harness import arguments, parse, table, write
from loss_distributed import COMPUTED, computed, sent
from simclr_lightning import Projector, resnet

HERE = Path(__file__).parent
BUCKET = 25 * 2**20  # DDP's buckets of gradients; the last one overlaps no backward pass
BACKWARD = 2 / 3  # of a step's compute
PARTS = ("compute", "loss", "gather of z", "BatchNorm", "gradients")
COLUMNS = {
    "scaling": "{scaling}",
    "BatchNorm over": "{batch_norm}",
    "GPUs": "{gpus}",
    "batch": "{batch}",
    **{f"{part}, ms": f"{{ms[{part}]:.2f}}" for part in PARTS},
    "images/s": "{images_per_second:,}",
    "efficiency": "{efficiency:.0%}",
}


@dataclass(frozen=True)
class Machine:
    """The assumed hardware."""

    pairs_per_second: float  # of one GPU: encoder and projector, forward, backward, optimizer
    measured: bool  # whether that rate is gpu.json's
    tflops: float = 60.0  # of one GPU for the float32 products of the loss (TF32 off)
    gpus_a_node: int = 8
    link: float = 350.0  # GB/s that a GPU sends within its node
    network: float = 45.0  # GB/s that a GPU sends between nodes
    link_latency: float = 3.0  # µs a step of a ring within a node
    network_latency: float = 8.0  # µs a step between nodes


@dataclass(frozen=True)
class Network:
    """The sizes that decide a network's communication: parameters, and the channels of every BatchNorm."""

    parameters: int
    channels: tuple[int, ...]


def resnet50() -> Network:
    with torch.device("meta"):
        encoder = resnet(50)
        model = nn.Sequential(encoder, Projector(encoder.feature_dim))
    norms = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    return Network(sum(p.numel() for p in model.parameters()), tuple(norms))


def hops(world: int, machine: Machine) -> tuple[int, int]:
    """Return the steps once around a ring through all GPUs: the steps within nodes, and those between nodes."""
    nodes = math.ceil(world / machine.gpus_a_node)
    between = nodes if nodes > 1 else 0
    return max(0, world - 1 - between), between


def ring(sent_bytes: float, world: int, machine: Machine, *, rounds: int) -> float:
    """Return the seconds of a ring collective in which every rank sends ``sent_bytes``, ``rounds`` times around.

    The slowest link limits all; every step around the ring adds one latency.
    """
    if world == 1:
        return 0.0
    within, between = hops(world, machine)
    pace = machine.network if between else machine.link
    latency = within * machine.link_latency + between * machine.network_latency
    return sent_bytes / (pace * 1e9) + rounds * latency * 1e-6


def all_reduce(size: float, world: int, machine: Machine, *, buckets: int) -> float:
    """Return the seconds to sum ``size`` bytes over all ranks in ``buckets``, by rings or by trees, the faster of both.

    A ring sends the fewest bytes. A double binary tree sends 2 ``size`` bytes, and its latencies grow as a logarithm.
    """
    ringed = ring(2 * (world - 1) / world * size, world, machine, rounds=2 * buckets)
    return min(ringed, small(2 * size, world, machine, times=2 * buckets))


def small(sent_bytes: float, world: int, machine: Machine, *, times: int) -> float:
    """Return the seconds of a collective that passes a tree of logarithmic depth ``times`` times."""
    if world == 1:
        return 0.0
    nodes = math.ceil(world / machine.gpus_a_node)
    within = math.ceil(math.log2(min(world, machine.gpus_a_node)))
    depth = within * machine.link_latency + math.ceil(math.log2(nodes)) * machine.network_latency
    pace = machine.network if nodes > 1 else machine.link
    return sent_bytes / (pace * 1e9) + times * depth * 1e-6


def loss_bytes(world: int, pairs: int) -> float:
    """Return the bytes that a rank sends for the loss; loss_distributed.py compares them with its counts."""
    return sum(sent(calls, world) for calls in computed(world, pairs)["ours"].values())


def step(world: int, pairs: int, group: int, machine: Machine, network: Network) -> dict[str, float]:
    """Return the seconds of each part of a step that overlaps no other, for ``pairs`` images on all ``world`` GPUs.

    BatchNorm, over ``group`` GPUs: an all-gather of mean, variance and count in the forward pass, an all-reduce of two
    sums in the backward pass; both block. Gradients: all-reduced in buckets while the backward pass runs; the part that
    lasts longer counts, and at least the last bucket.
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
    """Return the share of the step in which the encoder computes; at 1 all GPUs are as fast as one alone."""
    return parts["compute"] / sum(parts.values())


def check_counts() -> None:
    """Check that `loss_bytes` returns what loss_distributed.json counted."""
    saved = json.loads((HERE / "loss_distributed.json").read_text())
    for row in saved["rows"]:
        if row["method"] == "ours":
            found = loss_bytes(row["world"], saved["pairs"])
            assert found == row["forward"] + row["backward"], row


def rate_of_one(given: float | None) -> tuple[float, bool]:
    """Return images/s of one GPU and whether gpu.json measured them: ``given``, ResNet-50 at 224 pixels, or a guess."""
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
        "gathers of z are rings through all GPUs, limited by the slowest link; BatchNorm's collectives are trees; "
        "gradients take the faster of both",
        f"gradients overlap the backward pass ({BACKWARD:.0%} of the compute); BatchNorm and the loss overlap nothing",
        f"the loss's products: 6 M^2 D / W at {machine.tflops:g} TFLOP/s; data, stragglers and failures are left out",
    ]


def picture(found: list[dict[str, Any]], machine: Machine, path: Path) -> None:
    """Draw efficiency against the number of GPUs, and the parts of a step of weak scaling."""
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
    parser = arguments(__file__, __doc__)
    parser.add_argument("--pairs-per-second", type=float, help="of one GPU")
    parser.add_argument("--batch", type=int, default=4096, help="global batch of strong scaling")
    parser.add_argument("--each", type=int, default=64, help="images a GPU of weak scaling")
    assumed = ("tflops", "link", "network", "link_latency", "network_latency", "gpus_a_node")
    for name in assumed:
        default = getattr(Machine, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--picture", type=Path, help="also draw the efficiency into this file: docs/scaling.png")
    options = parse(parser)
    rate, measured = rate_of_one(options.pairs_per_second)
    machine = Machine(rate, measured, **{name: getattr(options, name) for name in assumed})
    network = resnet50()
    check_counts()
    found, texts = rows(machine, network, options.batch, options.each), assumptions(machine, network)
    print(table(COLUMNS, found), "assumptions:", *(f"- {text}" for text in texts), sep="\n")
    write(options, "torch", machine=asdict(machine), assumptions=texts, rows=found)
    if options.picture:
        picture(found, machine, options.picture)


if __name__ == "__main__":
    main()
