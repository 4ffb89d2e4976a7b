"""GPUs as a planner sees them: bytes of memory, bytes per second, operations per second."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """One GPU, or ``gpus`` of them that share a model evenly.

    memory: bytes of one. bandwidth: bytes per second that one reads from it. flops: multiplications
    and additions per second of one, dense, in bf16. ValueError unless all are above 0.
    """

    name: str
    memory: int
    bandwidth: float
    flops: float
    gpus: int = 1

    def __post_init__(self):
        for field in ("memory", "bandwidth", "flops", "gpus"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{field} = {value!r} is not possible: it must be above 0.")

    @property
    def total_memory(self) -> int:
        return self.gpus * self.memory

    @property
    def total_bandwidth(self) -> float:
        return self.gpus * self.bandwidth

    @property
    def total_flops(self) -> float:
        return self.gpus * self.flops

    def node(self, gpus: int = 8) -> Hardware:
        """``gpus`` of this kind, each with an equal share of everything: what a perfect split
        would give, the time they talk to each other left out."""
        return self.replace(name=f"{gpus} × {self.name}", gpus=gpus)

    def replace(self, **changes) -> Hardware:
        """The same with some fields changed: ``H200.replace(bandwidth=4.3e12)`` as measured."""
        return dataclasses.replace(self, **changes)


# Data-sheet figures, GB and TB decimal, flops without sparsity. Drivers show more memory than the
# name says (81,559 MiB = 85.5e9 bytes on an H100), so a plan made with these errs on the safe side;
# a plain copy reaches about nine tenths of the bandwidth (4.3 of 4.8 TB/s measured on an H200).
H100 = Hardware("H100 80 GB", int(80e9), 3.35e12, 989e12)  # NVIDIA H100 data sheet, SXM5
H200 = Hardware("H200", int(141e9), 4.8e12, 989e12)  # NVIDIA H200 data sheet, SXM
A100 = Hardware("A100 80 GB", int(80e9), 2.039e12, 312e12)  # NVIDIA A100 data sheet, SXM4
B200 = Hardware("B200", int(180e9), 7.7e12, 2250e12)  # NVIDIA Blackwell data sheet, HGX B200
RTX_4090 = Hardware("RTX 4090", int(24e9), 1.008e12, 165e12)  # NVIDIA Ada white paper, appendix A

PRESETS = {gpu.name: gpu for gpu in (H100, H200, A100, B200, RTX_4090)}
PRESETS |= {node.name: node for node in (H100.node(), H200.node(), B200.node())}
