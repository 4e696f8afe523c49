"""Every kernel compiles for the GPUs it is meant for, into what they have, without one being there."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia")

from triton_resources import SHARED_LIMIT, Resources, resources  # noqa: E402

LAUNCHES = Path(__file__).parent / "kernel_launches.py"


@lru_cache
def compiled(function: str, capability: int) -> dict[str, Resources]:
    return {r.kernel: r for r in resources(LAUNCHES, function, capability)}


@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_published_model_fits_without_spills(capability):
    found = compiled("production", capability)
    assert len(found) == 7
    for kernel in found.values():
        assert kernel.shared <= SHARED_LIMIT[capability], str(kernel)
        assert kernel.stack == 0, str(kernel)


def test_long_convolution_fits_a_hopper_with_next_to_no_spills():
    found = resources(LAUNCHES, "long_conv", 90)
    assert len(found) == 3
    for kernel in found:
        assert kernel.shared <= SHARED_LIMIT[90], str(kernel)
        assert kernel.stack <= 64, str(kernel)
        assert kernel.instructions.get("wgmma"), str(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_long_convolution_of_every_size_fits(capability):
    for kernel in resources(LAUNCHES, "long_conv_every_size", capability):
        assert kernel.shared <= SHARED_LIMIT[capability], str(kernel)
        assert kernel.stack <= 256, str(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_long_convolutions_gradients_fit(capability):
    """On the chip they hold two rows, the filter and a sum: 4,096 points spill, and on sm_80 2,048 do so badly."""
    for kernel in resources(LAUNCHES, "long_conv_gradients", capability):
        assert kernel.shared <= SHARED_LIMIT[capability], str(kernel)
        large = kernel.constants.get("P", 0) * kernel.constants.get("Q", 0) >= 2048
        allowed = {80: 10_000, 90: 1_100}[capability] if large else 300
        assert kernel.stack <= allowed, str(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_LIMIT)
@pytest.mark.parametrize("function", ["widths", "full_precision", "dropout", "one_token"])
def test_less_common_cases_fit_with_few_spills(function, capability):
    for kernel in resources(LAUNCHES, function, capability):
        assert kernel.shared <= SHARED_LIMIT[capability], str(kernel)
        assert kernel.stack <= 320, str(kernel)


@pytest.mark.parametrize("kernel", ["blockdiag_glu_fwd_kernel", "blockdiag_glu_bwd_kernel"])
def test_products_run_on_the_tensor_cores_of_a_hopper(kernel):
    """wgmma, not the mma of the generation before, and operands that arrive while others are multiplied."""
    instructions = compiled("production", 90)[kernel].instructions
    assert instructions.get("wgmma") and instructions.get("cp_async") and "mma" not in instructions


def test_a_launch_that_does_not_compile_is_an_error(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def launch():\n    raise ValueError('broken')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="broken"):
        resources(file, "launch", 90)
