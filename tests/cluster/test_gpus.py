"""The catalogue of GPUs: every spelling finds its product, and no figure is out of the ordinary."""

import re
from collections import Counter

import pytest
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from cluster.gpus import Gpu, catalogue, find

MIB, GIB = 2**20, 2**30
EACH = pytest.mark.parametrize("gpu", catalogue(), ids=lambda gpu: gpu.name)


def named(name: str) -> str | None:
    gpu = find(name)
    return gpu.name if gpu else None


@EACH
def test_a_product_is_found_by_its_short_name_and_as_nvml_and_kubernetes_spell_it(gpu: Gpu):
    for name in (gpu.name, gpu.nvml, gpu.kubernetes, gpu.nvml.upper(), gpu.kubernetes.lower()):
        assert find(name) == gpu
    # As a node names a GPU that pods share by time.
    assert find(f"{gpu.kubernetes}-SHARED") == gpu


@EACH
def test_kubernetes_spells_a_product_as_nvml_with_hyphens_and_ray_as_it_reads_nvml(gpu: Gpu):
    assert gpu.kubernetes == gpu.nvml.replace(" ", "-")
    assert gpu.ray == NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(gpu.nvml)


def test_no_two_products_share_a_name():
    for field in ("name", "nvml", "kubernetes"):
        counts = Counter(re.sub("[ _-]+", " ", getattr(gpu, field).lower()) for gpu in catalogue())
        assert [name for name, count in counts.items() if count > 1] == []


@EACH
def test_what_is_promised_for_rays_word_holds_on_every_product_of_that_word(gpu: Gpu):
    promised = find(gpu.ray)
    assert promised is not None
    assert promised.ray == gpu.ray
    assert promised.memory_bytes <= gpu.memory_bytes


@pytest.mark.parametrize(
    ("name", "found"),
    [
        # The longest name counts, and Ray's word stands in many.
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM5-80GB"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4080 SUPER", "RTX-4080-SUPER"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "RTX-4000-SFF-Ada"),
        # NVML names the H200 with SXM as Ray names both.
        ("NVIDIA H200", "H200-SXM5-141GB"),
        ("H200", "H200-NVL"),
        # Several answer: the least memory, then the least bandwidth and FLOPs.
        ("A100", "A100-SXM4-40GB"),
        ("H100", "H100-PCIe"),
        ("V100", "V100-PCIe-16GB"),
        ("P100", "P100-PCIe-12GB"),
        ("RTX-6000", "Quadro-RTX-6000"),
        ("RTX-PRO-6000", "RTX-PRO-6000-Blackwell-Server"),
        # A size narrows, and is never exceeded.
        ("A100-80G", "A100-PCIe-80GB"),
        ("nvidia a100 40gb", "A100-SXM4-40GB"),
        ("NVIDIA A100-SXM-64GB", "A100-SXM4-40GB"),
        ("V100 32GB", "V100-PCIe-32GB"),
        # Other brands of one product.
        ("NVIDIA T4", "T4"),
        ("GeForce-RTX-3090", "RTX-3090"),
        ("rtx_3090", "RTX-3090"),
    ],
)
def test_a_name_finds_the_product_it_means(name: str, found: str):
    assert named(name) == found


@pytest.mark.parametrize(
    "name",
    [
        "", "NVIDIA", "AMD Instinct MI300X", "NVIDIA A800-SXM4-80GB", "NVIDIA H100 64GB HBM2", "GRID T4-16Q",
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3060 Ti", "NVIDIA GeForce RTX 3080 Ti",
    ],
)  # fmt: skip
def test_another_product_is_not_taken_for_one_whose_name_stands_in_its_own(name: str):
    assert find(name) is None


@pytest.mark.parametrize(
    "name", ["NVIDIA A100-SXM4-80GB MIG 3g.40gb", "nvidia-a100-sxm4-80gb-mig-3g.40gb", "A100-80G MIG 3g.40gb"]
)
def test_a_mig_slice_has_its_profiles_memory_and_its_share_of_flops_and_bandwidth(name: str):
    card, found = find(name[: name.lower().index("mig") - 1]), find(name)
    assert card is not None
    assert found is not None
    assert found.memory_bytes == 40_000_000_000
    assert found.memory_as == "nominal"
    assert found.bf16_flops == pytest.approx(312e12 * 3 / 7)
    assert found.fp8_flops is None
    # Three of seven slices, but four of the memory's eight.
    assert found.memory_bandwidth_bytes_per_s == card.memory_bandwidth_bytes_per_s / 2
    assert found.nvml == f"{card.nvml} MIG 3g.40gb"
    assert found.kubernetes == f"{card.kubernetes}-MIG-3g.40gb"
    assert (found.ray, found.mig_slices) == ("A100", 0)
    assert find(found.kubernetes) == find(found.nvml) == find(found.name) == found


@pytest.mark.parametrize(
    ("card", "profiles"),
    [
        # https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html
        ("NVIDIA A100-SXM4-40GB", "1g.5gb 1g.5gb+me 1g.10gb 2g.10gb 3g.20gb 4g.20gb 7g.40gb"),
        ("NVIDIA A100 80GB PCIe", "1g.10gb 1g.10gb.me 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb"),
        ("NVIDIA H100 80GB HBM3", "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb"),
        ("NVIDIA H100 NVL", "1g.12gb 1g.24gb 2g.24gb 3g.47gb 4g.47gb 7g.94gb"),
        ("NVIDIA GH200 480GB", "1g.12gb 1g.24gb 2g.24gb 3g.48gb 4g.48gb 7g.96gb"),
        ("NVIDIA H200", "1g.18gb 1g.35gb 2g.35gb 3g.71gb 4g.71gb 7g.141gb"),
        ("NVIDIA B200", "1g.23gb 1g.45gb 2g.45gb 3g.90gb 4g.90gb 7g.180gb"),
        ("NVIDIA B300 SXM6 AC", "1g.34gb 1g.67gb 2g.67gb 3g.135gb 4g.135gb 7g.269gb"),
        ("NVIDIA A30", "1g.6gb 2g.12gb 4g.24gb"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "1g.24gb 2g.48gb 4g.96gb"),
    ],
)
def test_every_profile_of_a_card_is_a_slice_of_it(card: str, profiles: str):
    whole = find(card)
    assert whole is not None
    for profile in profiles.split():
        part = find(f"{card} MIG {profile}")
        assert part is not None, profile
        assert part.memory_bytes < whole.memory_bytes
        assert part.fp16_flops == pytest.approx(whole.fp16_flops * int(profile[0]) / whole.mig_slices)


@pytest.mark.parametrize(
    "name",
    [
        "Tesla T4 MIG 1g.5gb", "NVIDIA A100-SXM4-40GB MIG 7g.80gb", "NVIDIA A100-SXM4-80GB MIG 5g.40gb",
        "NVIDIA A100-SXM4-80GB MIG 3g.20gb", "NVIDIA A100-SXM4-80GB MIG", "MIG 3g.40gb",
        "NVIDIA A30 MIG 7g.24gb",
    ],
)  # fmt: skip
def test_a_profile_the_card_does_not_have_is_no_gpu(name: str):
    assert find(name) is None


@EACH
def test_figures_are_in_the_ordinary_range_and_of_the_architecture(gpu: Gpu):
    assert gpu.source.startswith("https://")
    assert gpu.memory_as in ("nvml", "nominal")
    assert 5 * GIB < gpu.memory_bytes < 300 * GIB
    assert gpu.memory_bytes % MIB == 0
    assert 200e9 <= gpu.memory_bandwidth_bytes_per_s <= 8e12
    assert 17e12 < gpu.fp16_flops <= 2.5e15
    # FLOPs a byte: below 20 nothing with tensor cores, above 800 nothing built.
    assert 20 < gpu.fp16_flops / gpu.memory_bandwidth_bytes_per_s < 800
    assert gpu.mig_slices in (0, 4, 7)

    assert gpu.architecture in ("Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell")
    if gpu.architecture in ("Pascal", "Volta", "Turing"):
        assert gpu.bf16_flops is None
    else:
        assert gpu.bf16_flops == gpu.fp16_flops
    if gpu.architecture in ("Ada", "Hopper", "Blackwell"):
        assert gpu.fp8_flops == pytest.approx(2 * gpu.fp16_flops, rel=0.02)
    else:
        assert gpu.fp8_flops is None


def test_memory_is_what_nvml_reports():
    assert {name: find(name).memory_bytes // MIB for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA H200")} == {
        "NVIDIA A100-SXM4-80GB": 81920, "NVIDIA H200": 143771,
    }  # fmt: skip
    assert find("NVIDIA H100 80GB HBM3").memory_bytes == 81559 * MIB
    assert find("NVIDIA GeForce RTX 4090").memory_bytes == 24564 * MIB
