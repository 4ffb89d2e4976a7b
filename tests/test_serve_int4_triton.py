"""The GPU's Int4 kernels: run by Triton's interpreter on the CPU, and compiled for real GPUs.

float16 in the interpreter: it multiplies bfloat16 operands of a dot as raw integers.
"""

import pytest
import torch

from minillama4.model.moe import Experts, SwiGLU
from minillama4.serve.int4 import dequantize, quantize
from minillama4.serve.int4_modules import Int4Linear
from minillama4.serve.quantize import quantize_experts
from tests.kernels import compiled_kernels, kernels_of

kernels = kernels_of("int4_triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float16, torch.bfloat16] if torch.cuda.is_available() else [torch.float16]


def relative(found, expected) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("n", [1, 5, 17, 70])
def test_a_product_equals_the_unpacked_one(n, group, dtype):
    torch.manual_seed(n)
    packed, scale = (t.to(DEVICE) for t in quantize(torch.randn(48, 256) * 0.02, group))
    x = torch.randn(n, 256).to(DEVICE, dtype)
    expected = x.double() @ dequantize(packed, scale, torch.float64).T
    assert relative(kernels.linear(x, packed, scale), expected) < 5e-3


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_the_input_add_up_to_the_product(parts):
    torch.manual_seed(parts)
    packed, scale = (t.to(DEVICE) for t in quantize(torch.randn(48, 512) * 0.02))
    x = torch.randn(3, 512).to(DEVICE, torch.float16)
    found = kernels.linear_parts(x, packed, scale, parts)
    each = zip(*(t.double().chunk(parts, 1) for t in (x, dequantize(packed, scale))), strict=True)
    assert found.dtype == torch.float32 and len(found) == parts
    for part, (a, w) in zip(found, each, strict=True):
        assert relative(part, a @ w.T) < 1e-3


@pytest.mark.parametrize("out, width", [(7168, 5120), (5120, 5120), (5120, 8192), (8192, 5120)])
def test_one_token_keeps_every_processor_of_a_gpu_busy(out, width):
    packed = torch.empty(out, width // 8, dtype=torch.int32, device="meta")
    cuts = kernels.linear_cuts(1, packed, torch.empty(out, width // 128, device="meta"))
    assert 132 < out // 128 * cuts < 132 * 3  # three programs find place in an H100's processor


def test_every_nibble_comes_out_as_itself():
    q = torch.arange(16).repeat(16, 8)  # (16, 128): a row holds each of the sixteen values 8 times
    from minillama4.serve.int4 import pack

    packed = pack((q - 8).to(torch.int8)).to(DEVICE)
    scale = torch.ones(16, 1, device=DEVICE)
    x = torch.eye(128, device=DEVICE, dtype=torch.float16)  # reads out one column after the other
    out = kernels.linear(x, packed, scale)
    torch.testing.assert_close(out, (q.T - 8).to(DEVICE, torch.float16), rtol=0, atol=0)


@pytest.mark.parametrize("group", [32, 128])
def test_unpacking_equals_dequantize(group):
    packed, scale = (t.to(DEVICE) for t in quantize(torch.randn(3, 32, 256) * 0.02, group))
    for dtype in DTYPES:
        found = kernels.unpack(packed, scale, dtype)
        torch.testing.assert_close(found, dequantize(packed, scale, torch.float32).to(dtype))


def some_layer(experts=4, width=256, hidden=128):
    """Packed routed experts and shared expert, and the same unpacked in float64."""
    torch.manual_seed(0)
    plain, shared = Experts(experts, width, hidden), SwiGLU(width, hidden)
    plain.requires_grad_(False), shared.requires_grad_(False)
    for weight in (plain.gate_up, plain.down, *shared.parameters()):
        weight.normal_(std=0.05)
    packed = quantize_experts(plain, 128, "compressed-tensors")
    for name in ("gate", "up", "down"):
        linear = Int4Linear.of(*quantize(getattr(shared, name).weight))
        setattr(shared, name, linear)
    return packed.to(DEVICE), shared.to(DEVICE)


def six(shared):
    return tuple(
        t for part in (shared.gate, shared.up, shared.down) for t in (part.packed, part.scale)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 4, 20])
@pytest.mark.parametrize("with_shared", [False, True])
def test_experts_equal_the_unpacked_layer(n, with_shared, dtype):
    packed, shared = some_layer()
    x = torch.randn(n, 256).to(DEVICE, dtype)
    score = torch.rand(n, 1, device=DEVICE)
    choice = torch.randint(0, 4, (n, 1), device=DEVICE)
    exact = packed(x.double(), score.double(), choice)  # float64: unpacked, on any device
    if with_shared:
        exact = exact + shared(x.double())
    extra = (six(shared),) if with_shared else ()
    out = kernels.experts(x, score[:, 0], choice[:, 0], *packed.tensors(), *extra)
    assert out.dtype == dtype and relative(out, exact) < 5e-3


@pytest.mark.parametrize("choice", [[3, 3, 3], [0, 3, 0], [2, 1, 1]])
def test_few_tokens_that_share_an_expert(choice):
    packed, shared = some_layer()
    x, score = torch.randn(3, 256).to(DEVICE, torch.float16), torch.rand(3, 1, device=DEVICE)
    choice = torch.tensor(choice, device=DEVICE)[:, None]
    exact = packed(x.double(), score.double(), choice) + shared(x.double())
    out = kernels.experts(x, score[:, 0], choice[:, 0], *packed.tensors(), six(shared))
    assert relative(out, exact) < 5e-3


def test_all_tokens_at_one_expert_and_a_tile_that_ends_early():
    packed, _ = some_layer()
    x = torch.randn(66, 256).to(DEVICE, torch.float16)  # a second tile of two tokens
    score, choice = torch.rand(66, 1, device=DEVICE), torch.full((66, 1), 3, device=DEVICE)
    out = kernels.experts(x, score[:, 0], choice[:, 0], *packed.tensors())
    assert relative(out, packed(x.double(), score.double(), choice)) < 5e-3


def test_rows_that_no_tensor_core_takes_are_told():
    packed, scale = quantize(torch.randn(40, 128))
    with pytest.raises(ValueError, match="40 output rows are not a multiple of 16"):
        kernels.linear(torch.ones(1, 128).half(), packed, scale)


# ---------------------------------------------------------------------- compiled, without a GPU
@pytest.fixture(scope="module")
def compiled():
    """What Triton makes of the kernels for GPUs that are not here: instructions for each weight."""
    return compiled_kernels("int4")


@pytest.mark.parametrize("tokens", [1, 16, 64])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", ["linear_kernel", "up_kernel", "down_kernel"])
def test_the_kernels_compile_for_real_gpus(compiled, name, arch, tokens):
    made = compiled[f"{name} sm_{arch} {tokens}"]
    assert made["bytes"] > 0 and made["spilled"] in (0, None)
    # an A100's processor has 164 KB, an H100's 227: two programs find place
    assert made["shared"] <= (164 if arch == 80 else 227) * 2**10 // 2
    assert made["waits"] <= 1  # words and x are under way before they are used; the scale is not


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("name", ["linear_kernel", "up_kernel", "down_kernel"])
def test_a_weight_costs_less_than_the_four_instructions_a_hopper_has_for_it(compiled, name, tokens):
    counted = compiled[f"{name} sm_90 {tokens}"]["instructions"]
    if not counted:
        pytest.skip("this Triton brings no disassembler")
    assert len(counted) == 1 and 2 < counted[0] < 3.5, counted  # 3.5 are left at 4.8 TB/s
