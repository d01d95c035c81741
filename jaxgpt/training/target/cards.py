"""The cards that a step can be compiled for: what the compiler needs to know, and the speeds of their data sheets.

Limits per core (threads, shared memory, registers) follow from the compute capability: CUDA C++ Programming Guide, table
"Technical Specifications per Compute Capability". Cores, clock, cache and bandwidth are NVIDIA's data sheets and architecture
papers; memory is what the driver reports. Speeds are dense (without sparsity), with sums in float32.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from jaxgpt.common.backend import Backend
from jaxgpt.config import UserError

CUDNN = (9, 10)  # major, minor: assumed to be installed with JAX on the machine of the card

# By compute capability: threads of a core, shared memory of a core and of a block (bytes), float32 units of a core.
_LIMITS = {
    (8, 0): (2048, 167_936, 166_912, 64),
    (8, 6): (1536, 102_400, 101_376, 128),
    (8, 9): (1536, 102_400, 101_376, 128),
    (9, 0): (2048, 233_472, 232_448, 128),
    (10, 0): (2048, 233_472, 232_448, 128),
}


@dataclass(frozen=True)
class Card:
    """A device: speeds in FLOP/s, bytes per second, bytes."""

    name: str
    device_kind: str  # as JAX names the device
    memory: int
    bandwidth: float
    link: float  # bytes per second that it can send to its neighbours in one machine
    bf16: float
    tf32: float  # products of float32 in 19 bits; XLA's default for float32
    f32: float  # without matrix units
    capability: tuple[int, int] = (0, 0)  # of an NVIDIA GPU
    cores: int = 0
    clock: float = 0.0  # GHz
    cache: int = 0  # L2, bytes
    generation: str = ""  # of a TPU, as libtpu names it

    @property
    def is_tpu(self) -> bool:
        return bool(self.generation)

    @property
    def backend(self) -> Backend:
        return Backend("tpu") if self.is_tpu else Backend("gpu", self.capability)

    @property
    def target_config(self) -> str:
        """The description of the card that XLA's GPU compiler reads (GpuTargetConfigProto as text)."""
        threads, shared, shared_block, units = _LIMITS[self.capability]
        major, minor = self.capability
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_block}
  threads_per_core_limit: {threads}
  core_count: {self.cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth:.0f}
  l2_cache_size: {self.cache}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{self.device_kind}"
"""


G, T, MiB = 1e9, 1e12, 2**20
# NVLink speeds are one direction of all links; PCIe 4.0 x16 and 5.0 x16 carry 32 and 64 GB/s in one direction.
# fmt: off
CARDS: dict[str, Card] = {card.name: card for card in (
    Card("h100", "NVIDIA H100 80GB HBM3", 84_929_347_584, 3352 * G, 450 * G, 989 * T, 494 * T, 67 * T, (9, 0), 132, 1.98, 50 * MiB),
    Card("h100-pcie", "NVIDIA H100 PCIe", 84_942_979_072, 2039 * G, 64 * G, 756 * T, 378 * T, 51 * T, (9, 0), 114, 1.755, 50 * MiB),
    Card("h200", "NVIDIA H200", 150_754_820_096, 4800 * G, 450 * G, 989 * T, 494 * T, 67 * T, (9, 0), 132, 1.98, 50 * MiB),
    Card("b200", "NVIDIA B200", 191_514_411_008, 7672 * G, 900 * G, 2250 * T, 1125 * T, 75 * T, (10, 0), 148, 1.965, 126 * MiB),
    Card("a100", "NVIDIA A100-SXM4-80GB", 85_100_068_864, 2039 * G, 300 * G, 312 * T, 156 * T, 19.5 * T, (8, 0), 108, 1.41, 40 * MiB),
    Card("a100-40", "NVIDIA A100-SXM4-40GB", 42_331_013_120, 1555 * G, 300 * G, 312 * T, 156 * T, 19.5 * T, (8, 0), 108, 1.41, 40 * MiB),
    Card("l40s", "NVIDIA L40S", 46_068 * MiB, 864 * G, 32 * G, 362 * T, 183 * T, 91.6 * T, (8, 9), 142, 2.52, 96 * MiB),
    Card("l4", "NVIDIA L4", 23_034 * MiB, 300 * G, 32 * G, 121 * T, 60 * T, 30.3 * T, (8, 9), 58, 2.04, 48 * MiB),
    Card("a10g", "NVIDIA A10G", 23_028 * MiB, 600 * G, 32 * G, 70 * T, 35 * T, 31.5 * T, (8, 6), 80, 1.71, 6 * MiB),
    Card("a6000", "NVIDIA RTX A6000", 51_041_271_808, 768 * G, 32 * G, 154.8 * T, 77.4 * T, 38.7 * T, (8, 6), 84, 1.8, 6 * MiB),
    Card("rtx4090", "NVIDIA GeForce RTX 4090", 24_564 * MiB, 1008 * G, 32 * G, 165 * T, 82.6 * T, 82.6 * T, (8, 9), 128, 2.52, 72 * MiB),
    Card("rtx3090", "NVIDIA GeForce RTX 3090", 24_268 * MiB, 936 * G, 32 * G, 71 * T, 35.6 * T, 35.6 * T, (8, 6), 82, 1.695, 6 * MiB),
    # TPUs: Google Cloud's pages of each version. A product of float32 is one of bfloat16, or six where it asks for more.
    Card("v5e", "TPU v5 lite", 16 * 2**30, 819 * G, 50 * G, 197 * T, 197 * T, 197 / 6 * T, generation="v5e"),
    Card("v6e", "TPU v6 lite", 32 * 2**30, 1640 * G, 100 * G, 918 * T, 918 * T, 918 / 6 * T, generation="v6e"),
)}
# fmt: on
TOPOLOGIES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4"}  # of TPUs, by their number


@dataclass(frozen=True)
class Target:
    """A number of equal cards in one machine: `h100x8`."""

    card: Card
    count: int

    def __str__(self) -> str:
        return self.card.name if self.count == 1 else f"{self.card.name}x{self.count}"


def parse(text: str) -> Target:
    """The target of a name such as `h100` or `h100x8`. Raises UserError that lists the cards."""
    name, count = text.lower(), "1"
    if name not in CARDS and "x" in name:
        name, _, count = name.rpartition("x")
    if name not in CARDS:
        close = difflib.get_close_matches(text.lower(), CARDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"--target={text}: {hint}choose one of {', '.join(CARDS)}; several of them: {next(iter(CARDS))}x8"
        )
    if not count.isdecimal() or not 1 <= int(count) <= 1024:
        raise UserError(f"--target={text}: give a number of cards from 1 to 1024, such as {name}x8")
    if CARDS[name].is_tpu and int(count) not in TOPOLOGIES:
        raise UserError(f"--target={text}: TPUs come as {', '.join(map(str, TOPOLOGIES))}, such as {name}x4")
    return Target(CARDS[name], int(count))


def of_device(device_kind: str) -> Card | None:
    """The card that JAX names so; None: not in the table."""
    return next((card for card in CARDS.values() if card.device_kind == device_kind), None)
