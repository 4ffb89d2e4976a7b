"""Int4: the packing against the compressed-tensors package, bounds, and modules against weights."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama4 as ml4
from minillama4.model.moe import Experts
from minillama4.serve import int4_modules
from minillama4.serve.int4 import (
    CONVENTIONS,
    dequantize,
    pack,
    pack_meta,
    quantize,
    round_to_grid,
    unpack,
    unpack_meta,
)
from minillama4.serve.int4_modules import Int4Experts, Int4Linear
from minillama4.serve.int4_products import CpuWeight
from minillama4.serve.quantize import WHAT, int4_bytes, is_int4, quantize_experts, quantize_model


def some_weight(rows=48, columns=256, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)


# ---------------------------------------------------------------------- the format
@settings(max_examples=30, deadline=None)
@given(
    group=st.sampled_from([32, 64, 128]),
    convention=st.sampled_from(sorted(CONVENTIONS)),
    bits=st.integers(2, 8),
    size=st.floats(1e-3, 1e3),
    seed=st.integers(0, 10**6),
)
def test_no_weight_moves_further_than_its_group_allows(group, convention, bits, size, seed):
    w = some_weight(seed=seed) * size
    q, scale = round_to_grid(w, group, convention, bits)
    half = 2 ** (bits - 1)
    assert q.dtype == torch.int8 and q.min() >= -half and q.max() <= half - 1
    moved = (q.unflatten(-1, (-1, group)) * scale[..., None] - w.unflatten(-1, (-1, group))).abs()
    # half a step, but at the top, where half - 1 steps must do for amax: one step, or half of one
    bound = {"meta": 1.0, "compressed-tensors": 0.5}[convention]
    assert (moved <= bound * scale[..., None] * (1 + 1e-4)).all()
    inside = w.unflatten(-1, (-1, group)) < (half - 1) * scale[..., None]
    assert (moved[inside] <= 0.5 * scale[..., None].expand_as(moved)[inside] * (1 + 1e-4)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), words=st.integers(1, 9))
def test_packing_is_undone_by_unpacking(seed, rows, words):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-8, 8, (2, rows, 8 * words), dtype=torch.int8, generator=generator)
    torch.testing.assert_close(unpack(pack(q)), q)
    torch.testing.assert_close(unpack_meta(pack_meta(q)), q)


def test_packing_puts_the_first_weight_into_the_lowest_bits():
    q = torch.tensor([[-8, -7, 0, 1, 2, 3, 4, 7]], dtype=torch.int8)
    assert pack(q).item() & 0xFFFFFFFF == 0xFCBA9810  # each as q + 8, read from the right
    assert pack_meta(q).view(torch.uint8).tolist() == [[0x98, 0x10, 0x32, 0x74]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [32, 128])
def test_equals_the_compressed_tensors_package_bit_for_bit(dtype, group):
    package = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    assert package
    w = some_weight(dtype=dtype)
    w[3, :group] = 0  # a group of zeros has a scale of its own
    args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    groups = w.unflatten(-1, (-1, group))
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    theirs = PackedQuantizationCompressor.compress(dict(weight=w, weight_scale=scale), scheme)
    packed, ours = quantize(w, group)
    assert torch.equal(ours, scale) and torch.equal(packed, theirs["weight_packed"])
    back = PackedQuantizationCompressor.decompress(theirs, scheme)["weight"]
    assert torch.equal(dequantize(packed, ours), back)


def test_metas_scale_keeps_the_lowest_and_cuts_the_highest():
    w = torch.zeros(2, 128)
    w[0, 5], w[1, 5] = -1.0, 1.0
    packed, scale = quantize(w, convention="meta")
    assert scale.dtype == torch.float32 and scale.tolist() == [[0.125], [0.125]]
    assert dequantize(packed, scale)[:, 5].tolist() == [-1.0, 0.875]
    zeros = quantize(torch.zeros(1, 128), convention="meta")
    assert zeros[1].item() == pytest.approx(1e-6 / 8) and not dequantize(*zeros).any()


def test_relative_error_on_gaussian_weights_is_the_specs():
    w = some_weight(512, 1024)
    for convention, expected in (("compressed-tensors", 0.111), ("meta", 0.106)):
        error = (dequantize(*quantize(w, convention=convention)) - w).norm() / w.norm()
        assert error == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(group=96), "do not divide 256"),
        (dict(group=0), "do not divide"),
        (dict(convention="gptq"), "none of compressed-tensors, meta"),
        (dict(bits=1), "from 2 to 8"),
        (dict(weight=torch.ones(128)), r"\(..., out, in\)"),
        (dict(weight=torch.ones(2, 128, dtype=torch.int64)), "must be floating"),
        (dict(weight=torch.full((2, 128), float("nan"))), "not finite"),
    ],
)
def test_bad_input_is_told(change, message):
    with pytest.raises(ValueError, match=message):
        round_to_grid(**(dict(weight=some_weight()) | change))


@pytest.mark.parametrize("value", [-9, 8])
def test_what_four_bits_cannot_hold_is_refused(value):
    q = torch.zeros(2, 16, dtype=torch.int8)
    q[1, 3] = value
    with pytest.raises(ValueError, match="four bits cannot hold it"):
        pack(q)


def test_rows_that_do_not_fill_words_are_refused():
    with pytest.raises(ValueError, match="do not fill"):
        pack(torch.zeros(2, 12, dtype=torch.int8))


# ---------------------------------------------------------------------- the modules
@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_a_linear_multiplies_with_what_it_unpacks_to(convention, rows):
    linear = Int4Linear.of(*quantize(some_weight(), convention=convention))
    x = torch.randn(2, rows, 256, dtype=torch.float64)
    torch.testing.assert_close(linear(x), x @ linear.weight(torch.float64).T)
    assert (linear.in_features, linear.out_features) == (256, 48)
    assert "group=128" in repr(linear)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_cpu_kernel_rounds_only_as_bfloat16_does(group):
    packed, scale = quantize(some_weight(dtype=torch.bfloat16), group)
    linear, x = Int4Linear.of(packed, scale), torch.randn(5, 256).bfloat16()
    assert CpuWeight.can_hold(packed, scale)
    exact = x.double() @ linear.weight(torch.float64).T
    with torch.no_grad():
        torch.testing.assert_close(linear(x).double(), exact, rtol=2**-7, atol=2e-3)
    torch.testing.assert_close(linear.on_cpu(x.float()), linear.on_cpu(x))


def test_a_linear_whose_rows_the_cpu_kernel_does_not_take_still_computes():
    linear = Int4Linear.of(*quantize(some_weight(rows=40, dtype=torch.bfloat16)))
    assert not CpuWeight.can_hold(linear.packed, linear.scale)
    x = torch.randn(2, 256).bfloat16()
    torch.testing.assert_close(linear(x), x @ linear.weight().T)


def unpacked(experts: Int4Experts) -> Experts:
    """An ``Experts`` that holds what the packed ones stand for, in float64."""
    e, width, hidden = len(experts.down_packed), experts.down_packed.shape[1], 128
    plain = Experts(e, width, hidden).double().requires_grad_(False)
    for i in range(e):
        gate_up, down = experts.weights(i, torch.float64)
        plain.gate_up[i], plain.down[i] = gate_up.T, down.T
    return plain


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("rows", [1, 9, 80])
def test_experts_equal_unpacked_experts(top_k, rows):
    torch.manual_seed(0)
    plain = Experts(4, 256, 128).requires_grad_(False)
    plain.gate_up.normal_(std=0.05), plain.down.normal_(std=0.05)
    experts = quantize_experts(plain, 128, "compressed-tensors")
    x = torch.randn(rows, 256, dtype=torch.float64)
    score, choice = torch.rand(rows, 4, dtype=torch.float64).topk(top_k)
    expected = unpacked(experts)(x, score, choice)
    torch.testing.assert_close(experts(x, score, choice), expected)
    quick = experts(x.bfloat16(), score.bfloat16(), choice)
    error = (quick.double() - expected).norm() / expected.norm()
    assert quick.dtype == torch.bfloat16 and 0 < error < 0.02


@pytest.mark.parametrize("load", [[9, 0, 3, 8, 4, 6], [0, 0, 0, 0, 30, 0], [30, 0, 0, 0, 0, 0]])
def test_prompts_are_read_by_a_grouped_product_of_some_experts_at_a_time(load):
    torch.manual_seed(0)
    plain = Experts(6, 256, 128).requires_grad_(False)
    plain.gate_up.normal_(std=0.05), plain.down.normal_(std=0.05)
    experts = quantize_experts(plain, 128, "compressed-tensors")
    x = torch.randn(30, 256)
    choice = torch.arange(6).repeat_interleave(torch.tensor(load))[:, None]
    expected = experts(x.double(), torch.ones(30, 1, dtype=torch.float64), choice)
    torch.testing.assert_close(experts.grouped(x, load).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_gradient_passes_through_to_what_lies_below():
    linear, x = Int4Linear.of(*quantize(some_weight())), torch.randn(3, 256, requires_grad=True)
    linear(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight().sum(0).expand(3, -1))


def test_a_cast_forgets_what_was_made_for_the_cpu_kernel():
    linear = Int4Linear.of(*quantize(some_weight()))
    before = linear.on_cpu(torch.ones(1, 256))
    linear.packed = pack(-unpack(linear.packed).clamp(min=-7))
    linear.to(torch.bfloat16)
    assert linear.scale.dtype == torch.bfloat16 and linear.packed.dtype == torch.int32
    assert not torch.equal(before, linear.on_cpu(torch.ones(1, 256)))


def set_each(used, other):
    for name, tensor in other.named_buffers():
        setattr(used, name, tensor)


def write_each(used, other):
    for name, tensor in other.named_buffers():
        getattr(used, name).copy_(tensor)


def point_each(used, other):
    for name, tensor in other.named_buffers():
        getattr(used, name).data = tensor


WAYS = {"set": set_each, "written to": write_each, "pointed elsewhere": point_each}
WAYS["loaded"] = lambda used, other: used.load_state_dict(other.state_dict())
WAYS["assigned"] = lambda used, other: used.load_state_dict(other.state_dict(), assign=True)


def linear_and_experts(seed: int):
    torch.manual_seed(seed)
    plain = Experts(2, 256, 128).requires_grad_(False)
    plain.gate_up.normal_(std=0.05), plain.down.normal_(std=0.05)
    linear = Int4Linear.of(*quantize(torch.randn(48, 256).bfloat16()))
    return linear, quantize_experts(plain.bfloat16(), 128, "compressed-tensors")


def inputs():
    x = torch.randn(3, 256).bfloat16()
    return (x,), (x, torch.ones(3, 1).bfloat16(), torch.tensor([[0], [1], [0]]))


@pytest.mark.parametrize("way", WAYS)
def test_other_weights_forget_what_was_made_for_the_cpu_kernel(way):
    with torch.no_grad():
        parts = linear_and_experts(0), linear_and_experts(1), inputs()
        for used, other, given in zip(*parts, strict=True):
            before = used(*given)
            WAYS[way](used, other)
            assert not torch.equal(used(*given), before)
            assert torch.equal(used(*given), other(*given))


def test_weights_that_are_lent_for_a_call_are_given_back():
    with torch.no_grad():
        parts = linear_and_experts(0), linear_and_experts(1), inputs()
        for own, other, given in zip(*parts, strict=True):
            lent = dict(other.named_buffers())
            assert torch.equal(torch.func.functional_call(own, lent, given), other(*given))
            assert torch.equal(own(*given), copy.deepcopy(own)(*given))


def test_copies_hold_the_weights_once_and_answer_alike():
    with torch.no_grad():
        for used, given in zip(linear_and_experts(0), inputs(), strict=True):
            answer, size = used(*given), sum(t.nbytes for t in used.buffers())
            used.compile()  # which is not pickled either
            written = pickle.dumps(used)
            assert len(written) < size + 5000
            for other in (copy.deepcopy(used), pickle.loads(written)):
                assert torch.equal(other(*given), answer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_takes_what_a_linear_takes(dtype):
    linear = Int4Linear.of(*quantize(some_weight(dtype=dtype)))
    plain = torch.nn.Linear(256, 48, bias=False, dtype=dtype)
    with torch.no_grad():
        plain.weight.copy_(linear.weight())
        x = torch.randn(256, 6, dtype=dtype)
        for given in (x[:, 0].contiguous(), x.T, x[:, :0].T, x.T.reshape(2, 3, 256).mT.mT):
            near = dict(rtol=2**-6, atol=2e-2) if dtype == torch.bfloat16 else {}
            torch.testing.assert_close(linear(given), plain(given), **near)
        assert linear(torch.zeros(2, 0, 256, dtype=dtype)).shape == (2, 0, 48)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_router_learns_though_nothing_below_it_does(on_gpu, monkeypatch):
    """Kernels have no gradient: few tokens go past them where the score alone has one."""
    kernels = object() if on_gpu else None  # whose use would raise
    monkeypatch.setattr(int4_modules, "gpu_kernels", lambda x: kernels)
    torch.manual_seed(0)
    plain = Experts(2, 256, 128).requires_grad_(False)
    plain.gate_up.normal_(std=0.05), plain.down.normal_(std=0.05)
    experts = quantize_experts(plain, 128, "compressed-tensors")
    score = torch.full((3, 1), 0.5, requires_grad=True)
    experts(torch.randn(3, 256), score, torch.tensor([[0], [1], [0]])).sum().backward()
    assert score.grad.abs().min() > 0


def test_a_scale_has_no_gradient():
    weight = torch.nn.Parameter(some_weight())
    for convention in CONVENTIONS:
        packed, scale = quantize(weight, convention=convention)
        assert not scale.requires_grad and not packed.requires_grad
    copy.deepcopy(Int4Linear.of(packed, scale))  # which a tensor with a history refuses


def test_metas_packing_wants_pairs():
    with pytest.raises(ValueError, match="3 weights to a row do not fill bytes"):
        pack_meta(torch.zeros(2, 3, dtype=torch.int8))


@pytest.mark.parametrize("group", [0, -8, 32.0])
def test_a_group_that_is_none_is_told(group):
    with pytest.raises(ValueError, match="is not a number of weights"):
        quantize_model(ml4.Llama4(ml4.Llama4Config.nano()), group=group)


# ---------------------------------------------------------------------- a whole model
@pytest.fixture(scope="module")
def mini():
    return ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32)


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
def test_an_int4_model_equals_one_with_the_rounded_weights(mini, what, convention):
    quantised = quantize_model(copy.deepcopy(mini), what, convention=convention)
    plain = copy.deepcopy(mini).requires_grad_(False)
    for mine, theirs in zip(quantised.blocks, plain.blocks, strict=True):
        for e in range(plain.config.experts):
            gate_up, down = mine.ffn.experts.weights(e, torch.float32)
            theirs.ffn.experts.gate_up[e], theirs.ffn.experts.down[e] = gate_up.T, down.T
        for part, names in ((mine.ffn.shared, "gate up down"), (mine.attention, "q k v o")):
            twin = theirs.ffn.shared if part is mine.ffn.shared else theirs.attention
            for name in names.split():
                if isinstance(new := getattr(part, name), Int4Linear):
                    getattr(twin, name).weight.copy_(new.weight())
        assert isinstance(mine.attention.q, Int4Linear) == (what != "experts")
        assert mine.ffn.router.weight.dtype == torch.float32
    if what == "all":
        plain.head.weight.copy_(quantised.head.weight())
    tokens = torch.randint(0, 2000, (2, 300))
    with torch.no_grad():
        torch.testing.assert_close(quantised(tokens), plain(tokens), rtol=1e-4, atol=1e-4)


def test_the_model_shrinks_to_what_is_counted(mini):
    quantised, c = quantize_model(copy.deepcopy(mini)), mini.config
    weights = c.layers * (c.experts + 1) * 3 * c.width * c.expert_hidden
    assert is_int4(quantised) and not is_int4(mini)
    assert int4_bytes(quantised) == weights // 2 + weights // 128 * 4  # float32 weights and scales


def test_small_groups_round_more_finely(mini):
    plain = mini.blocks[3].ffn.experts

    def error(group):
        return (quantised_gate_up(plain, group) - plain.gate_up[0].T).norm().item()

    assert error(32) < 0.95 * error(128)


def quantised_gate_up(experts, group):
    return quantize_experts(experts, group, "compressed-tensors").weights(0)[0]


def test_the_loss_of_the_shipped_model_rises_a_little(mini):
    tokens = ml4.load_tokenizer().encode("def add(a, b):\n    return a + b\n\n\n" * 20)
    tokens = torch.tensor([tokens[:256]])

    def loss(model):
        with torch.no_grad():
            return F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:]).item()

    assert abs(loss(quantize_model(copy.deepcopy(mini))) - loss(mini)) < 0.3


def test_dense_layers_are_left_alone_or_quantised_as_asked():
    for what, kind in (("experts", torch.nn.Linear), ("blocks", Int4Linear)):
        model = quantize_model(ml4.Llama4(ml4.Llama4Config.mini_maverick()), what)
        assert isinstance(model.blocks[0].ffn.gate, kind)


def test_a_weight_that_is_no_number_is_told_before_anything_is_replaced(mini):
    model = copy.deepcopy(mini).requires_grad_(False)
    model.blocks[5].ffn.experts.down[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.5\.ffn\.experts\.down is not finite"):
        quantize_model(model)
    assert not is_int4(model)


def test_more_can_be_quantised_later_and_nothing_twice(mini):
    steps = copy.deepcopy(mini).requires_grad_(False)
    for what in WHAT:
        quantize_model(steps, what)
        at_once = quantize_model(copy.deepcopy(mini).requires_grad_(False), what)
        pairs = zip(steps.state_dict().items(), at_once.state_dict().items(), strict=True)
        assert all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)
        with pytest.raises(ValueError, match="in Int4 already"):
            quantize_model(steps, what)


def test_what_cannot_be_quantised_is_told(mini):
    with pytest.raises(ValueError, match="none of experts, blocks, all"):
        quantize_model(copy.deepcopy(mini), "router")
    with pytest.raises(ValueError, match="in Int4 already"):
        quantize_model(quantize_model(copy.deepcopy(mini)))
    with pytest.raises(ValueError, match="width = 64, expert_hidden = 64"):
        quantize_model(ml4.Llama4(ml4.Llama4Config.nano()))
    with pytest.raises(ValueError, match="multiple of 8"):
        quantize_model(ml4.Llama4(ml4.Llama4Config.nano()), group=4)
    tied = ml4.Llama4(ml4.Llama4Config.nano(tied=True))
    with pytest.raises(ValueError, match="quantise its blocks only"):
        quantize_model(tied, "all", group=32)
