"""Published figures of accelerator chips: rates for the roofline, memory for what fits.

All figures are per chip. A product's page may list less memory than the chip has; `usable` is what the compiler grants
a program, where it has been seen in an out-of-memory message, and the published capacity otherwise.
"""

from __future__ import annotations

import dataclasses

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip. Rates are peaks that no program reaches."""

    name: str
    flops: float  # bfloat16 FLOP/s, dense
    hbm_bytes: int  # published capacity
    usable: int  # bytes that the compiler grants a program
    hbm_bandwidth: float  # bytes/s
    links: float  # bytes/s that the chip can send to others of its slice or node, over all its links
    network: float | None  # bytes/s that it can send to other slices or hosts; None: not published
    devices: int = 1  # JAX devices per chip, which share all of the above
    source: str


CLOUD = "https://docs.cloud.google.com/tpu/docs"
CHIPS = {chip.name: chip for chip in (
    # The page has no interconnect figure; 6 links of 50 GB/s each way: Jouppi et al. 2023, arXiv 2304.01433, table 4.
    Chip(name="v4", flops=275e12, hbm_bytes=32 * GIB, usable=32 * GIB, hbm_bandwidth=1200e9, links=300e9, network=None,
         source=f"{CLOUD}/v4 and arXiv 2304.01433"),
    # Interconnect pages state both directions together: half of it can be sent. 6.4 Tbit/s leave a pod of 256 chips.
    Chip(name="v5e", flops=197e12, hbm_bytes=16 * 10**9, usable=int(15.75 * GIB), hbm_bandwidth=819e9, links=400e9 / 2,
         network=6.4e12 / 8 / 256, source=f"{CLOUD}/v5e"),
    Chip(name="v5p", flops=459e12, hbm_bytes=95 * GIB, usable=int(95.74 * GIB), hbm_bandwidth=2765e9, links=1200e9 / 2,
         network=50e9 / 8, source=f"{CLOUD}/v5p"),
    Chip(name="v6e", flops=918e12, hbm_bytes=32 * 10**9, usable=int(31.25 * GIB), hbm_bandwidth=1638e9, links=800e9 / 2,
         network=100e9 / 8, source=f"{CLOUD}/v6e and {CLOUD}/tpu7x"),
    Chip(name="tpu7x", flops=2307e12, hbm_bytes=192 * GIB, usable=192 * GIB, hbm_bandwidth=7380e9, links=1200e9 / 2,
         network=100e9 / 8, devices=2, source=f"{CLOUD}/tpu7x"),
    Chip(name="a100", flops=312e12, hbm_bytes=80 * 10**9, usable=80 * 10**9, hbm_bandwidth=2039e9, links=600e9 / 2,
         network=None, source="NVIDIA A100 80GB SXM data sheet"),
    Chip(name="h100", flops=989e12, hbm_bytes=80 * 10**9, usable=80 * 10**9, hbm_bandwidth=3350e9, links=900e9 / 2,
         network=None, source="NVIDIA H100 SXM data sheet"),
    Chip(name="h200", flops=989e12, hbm_bytes=141 * 10**9, usable=141 * 10**9, hbm_bandwidth=4800e9, links=900e9 / 2,
         network=None, source="NVIDIA H200 SXM data sheet"),
)}

# What devices call themselves -> chip. The longer names stand before those that begin like them.
KINDS = (("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"), ("TPU v5", "v5p"), ("TPU v6", "v6e"),
         ("TPU7x", "tpu7x"), ("TPU v7", "tpu7x"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA H100 80GB HBM3", "h100"),
         ("NVIDIA H200", "h200"))


def chip_of(device: jax.Device) -> Chip | None:
    """The chip that a device is (part of); None where no figures are known, as for CPUs."""
    kind = device.device_kind.lower()
    return next((CHIPS[name] for start, name in KINDS if kind.startswith(start.lower())), None)
