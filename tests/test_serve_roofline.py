"""The ceiling of decoding: the speed page's tables, counts by simulation, what must hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama4 as ml4
from minillama4.explore import trace
from minillama4.serve.hardware import H100, H200, PRESETS
from minillama4.serve.memory import kv_bytes, kv_bytes_per_slot
from minillama4.serve.precision import SCHEMES, weight_bytes
from minillama4.serve.roofline import (
    decode_step,
    distinct_experts,
    entries_read,
    flops_per_token,
)
from tests.reference import small

SCOUT, MAVERICK = ml4.Llama4Config.scout(), ml4.Llama4Config.maverick()
COPY = H200.replace(bandwidth=4.3e12)  # as measured
KV = kv_bytes_per_slot(SCOUT)


# ------------------------------------------------------------------ the speed page
@pytest.mark.parametrize(
    ("scheme", "read", "h100", "h200"),
    [
        ("bf16", 32.3, 103, 132),
        ("int4-meta", 14.5, 227, 292),
        ("int4-blocks", 9.86, 333, 427),
        ("int4-all", 8.33, 393, 504),
    ],
)
def test_the_limit_of_scout(scheme, read, h100, h200):
    step = decode_step(SCOUT, H100, scheme, context=1024)
    digits = 1 if read > 10 else 2
    assert round((step.bytes - step.reads["cache"]) / 1e9, digits) == read  # weights alone
    assert round(step.ceiling) == h100 and step.bound == "memory"
    assert round(decode_step(SCOUT, COPY, scheme, context=1024).ceiling) == h200


@pytest.mark.parametrize(
    ("context", "h100", "h200"), [(2**13, 308, 396), (2**17, 198, 254), (2**20, 54, 69)]
)
def test_the_limit_by_context(context, h100, h200):
    """The page counts RoPE layers with half a chunk, as they hold on average."""
    found = [decode_step(SCOUT, gpu, "int4-blocks", context).ceiling for gpu in (H100, COPY)]
    assert [round(x) for x in found] == [h100, h200]


@pytest.mark.parametrize(
    ("batch", "distinct", "ceiling"), [(4, 3.6, 910), (16, 10.3, 1636), (64, 15.7, 4008)]
)
def test_the_limit_by_batch(batch, distinct, ceiling):
    assert round(distinct_experts(16, batch), 1) == distinct
    assert round(decode_step(SCOUT, COPY, "int4-blocks", 1024, batch).ceiling) == ceiling


def test_the_predicted_speeds_are_three_quarters_of_the_ceiling():
    for gpu, speed in ((COPY, 320), (H100, 250)):
        assert decode_step(SCOUT, gpu, "int4-blocks", 1024).mbu(speed) == pytest.approx(
            0.75, abs=0.002
        )


def test_reading_all_experts_costs_metas_int4_path_its_speed():
    """Sixteen experts for one token: 62.7 GB, at most 53 tokens a second."""
    step = decode_step(SCOUT, H100, "int4-meta", 1024)
    all_experts = step.bytes + 15 * step.reads["routed experts"] - step.reads["cache"]
    assert round(all_experts / 1e9, 1) == 62.7 and round(H100.bandwidth / all_experts) == 53


# ------------------------------------------------------------------ what is read
def test_one_token_in_bf16_reads_its_active_parameters():
    for config in (SCOUT, MAVERICK, ml4.Llama4Config.mini(), ml4.Llama4Config.mini_dense()):
        step, count = decode_step(config, context=1), config.parameters()
        table = count.active_text["embedding"]
        weights = step.bytes - step.reads["cache"]
        assert weights == pytest.approx(2 * (count.active - table + config.width), rel=1e-12)
        assert step.reads["cache"] == kv_bytes(config, 1)


def test_a_huge_batch_reads_every_weight_once():
    for scheme in SCHEMES:
        step = decode_step(MAVERICK, H100, scheme, context=1, batch=10**6)
        whole = weight_bytes(MAVERICK, scheme, vision=False)
        assert step.bytes - step.reads["cache"] == pytest.approx(sum(whole.values()), rel=1e-9)


def test_a_tied_head_is_read_though_it_is_not_stored_twice():
    one, two = (decode_step(ml4.Llama4Config.nano(tied=tied)) for tied in (True, False))
    assert one.bytes == two.bytes and one.flops == two.flops


def test_keys_that_a_token_looks_at():
    config = ml4.Llama4Config.nano(chunk=8, nope_at=(3,))
    exact = [entries_read(config, n, average=False)[0] for n in range(1, 20)]
    assert exact == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    assert [entries_read(config, n)[0] for n in (7, 8, 9, 1000)] == [7, 4.5, 4.5, 4.5]
    assert sum(exact[:8]) / 8 == 4.5
    assert entries_read(config, 100)[3] == entries_read(config, 100, average=False)[3] == 100
    assert entries_read(config, 100, chunked=False) == [100] * 4
    assert entries_read(config.replace(chunk=None), 100) == [100] * 4


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 21])
def test_a_decoding_cache_gives_as_many_keys_as_were_counted(length):
    """The keys that attention is handed for the newest token, layer by layer."""
    model = small(chunk=8)
    cache = ml4.KVCache(model.config)
    tokens = torch.zeros(1, length, dtype=torch.int64)
    if length > 1:
        model(tokens[:, :-1], cache=cache)
    seen, appended = [], type(cache.layers[0])._attend_piece

    def attend(memory, q, k, v, place, a, z):
        seen.append(memory.slot(place.start[0] + a) + z - a)
        return appended(memory, q, k, v, place, a, z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(cache.layers[0]), "_attend_piece", attend)
        model(tokens[:, -1:], cache=cache)
    if length > 1:
        assert seen == entries_read(model.config, length, average=False)


# ------------------------------------------------------------------ distinct experts
@settings(max_examples=60, deadline=None)
@given(experts=st.integers(1, 40), tokens=st.integers(0, 200), data=st.data())
def test_the_closed_form(experts, tokens, data):
    k = data.draw(st.integers(1, experts))
    even = distinct_experts(experts, tokens, k)
    assert even == pytest.approx(experts * (1 - (1 - k / experts) ** tokens))
    assert even == pytest.approx(distinct_experts(experts, tokens, k, [k / experts] * experts))
    assert 0 <= even <= min(experts, tokens * k) + 1e-9
    assert distinct_experts(experts, tokens + 1, k) >= even


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=20), st.integers(1, 60))
def test_skew_never_hits_more(weights, tokens):
    p = [w / sum(weights) for w in weights]
    assert distinct_experts(len(p), tokens, 1, p) <= distinct_experts(len(p), tokens) + 1e-9


@pytest.mark.parametrize("tokens", [1, 5, 30])
def test_the_closed_form_against_a_draw(tokens):
    p = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02, 0.0])
    draw = torch.multinomial(
        p.expand(20_000, -1), tokens, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    counted = torch.nn.functional.one_hot(draw, 8).amax(1).sum(1).double()
    error = counted.std().item() / math.sqrt(len(counted))
    expected = distinct_experts(8, tokens, 1, p.tolist())
    assert abs(counted.mean().item() - expected) < 4 * error + 1e-6


def test_one_expert_for_all_is_read_once():
    alone = [1.0] + [0.0] * 15
    assert distinct_experts(16, 1000, 1, alone) == 1
    one, skewed = (
        decode_step(SCOUT, batch=batch, context=1, chances=alone).reads["routed experts"]
        for batch in (1, 64)
    )
    assert one == skewed


def test_chances_by_layer_and_as_a_tensor():
    config = ml4.Llama4Config.nano(moe_every=2)  # layers 1 and 3
    rows = [[1.0, 0, 0, 0], [0.25] * 4]
    step = decode_step(config, batch=8, chances=rows)
    each = weight_bytes(config)["routed experts"] / (2 * 4)
    expected = each * (1 + distinct_experts(4, 8))
    assert step.reads["routed experts"] == pytest.approx(expected)
    other = decode_step(config, batch=8, chances=torch.tensor(rows))
    assert other.reads == pytest.approx(step.reads)
    assert decode_step(config, batch=8, chances=torch.full((4,), 0.25)).bytes == pytest.approx(
        decode_step(config, batch=8).bytes
    )


# ------------------------------------------------------------------ arithmetic
def test_operations_are_those_of_the_forward():
    """Counted by torch's own counter on a small model, all but the router's choice and norms."""
    from torch.utils.flop_counter import FlopCounterMode

    for config in (small().config.replace(nope_at=(3,)), small().config.replace(moe_every=2)):
        model = ml4.Llama4(config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.int64))
        attention = 4 * config.heads * config.head_width * config.layers  # one key each
        counted = counter.get_total_flops()
        expected = flops_per_token(config, 1)
        assert counted in (expected, expected - attention)  # a fused attention is not counted


def test_scout_computes_two_operations_for_each_weight():
    active = 16_138_408_960 - 496_640  # without the embedding table, and without norms
    keys = 12 * 1024 + 36 * 1024
    assert flops_per_token(SCOUT, 1024) == 2 * active + 4 * 5120 * keys
    assert flops_per_token(SCOUT, 10**6, chunked=False) == 2 * active + 4 * 5120 * 48 * 10**6


def test_arithmetic_bounds_a_large_batch_of_short_texts():
    small_batch, large = (decode_step(SCOUT, H100, "bf16", 64, batch) for batch in (1, 8192))
    assert (small_batch.bound, large.bound) == ("memory", "arithmetic")
    assert large.ceiling == pytest.approx(H100.flops / flops_per_token(SCOUT, 64))
    assert decode_step(SCOUT, H100, "bf16", 2**17, 8192).bound == "memory"  # caches stay apart


# ------------------------------------------------------------------ what must hold
situations = st.fixed_dictionaries(
    {
        "scheme": st.sampled_from([*SCHEMES]),
        "context": st.integers(1, 2**21),
        "batch": st.integers(1, 500),
        "chunked": st.booleans(),
        "cache": st.sampled_from([torch.bfloat16, torch.float8_e4m3fn]),
    }
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([SCOUT, MAVERICK]), st.sampled_from([*PRESETS.values()]), situations)
def test_more_of_anything_is_no_faster_for_a_text(config, gpu, at):
    step = decode_step(config, gpu, **at)
    assert step.ceiling == min(step.memory_ceiling, step.compute_ceiling)
    assert step.mbu(step.memory_ceiling) == pytest.approx(1)
    further = decode_step(config, gpu, **{**at, "context": 2 * max(at["context"], 8192)})
    larger = decode_step(config, gpu, **{**at, "batch": at["batch"] + 1})
    assert further.bytes >= step.bytes and larger.bytes > step.bytes
    assert larger.bytes / (at["batch"] + 1) <= step.bytes / at["batch"] * (1 + 1e-12)
    plain = decode_step(config, gpu, **{**at, "chunked": False})
    assert plain.bytes >= step.bytes and plain.flops >= step.flops
    assert decode_step(config, gpu, **{**at, "scheme": "bf16"}).bytes >= step.bytes
    assert decode_step(config, gpu.node(2), **at).ceiling == pytest.approx(
        2 * decode_step(config, gpu.replace(gpus=1), **at).ceiling
    )


def test_a_step_is_shown_as_a_table():
    said = repr(decode_step(SCOUT, H100, "int4-blocks"))
    assert said.splitlines()[-1] == (
        "H100 80 GB, batch 1: at most 333 tokens per second in all, bound by memory"
    )
    assert "dense layers" not in said and "a step reads" in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode_step(SCOUT, batch=0), "batch must be a number of texts, 1 or more, not 0"),
        (lambda: decode_step(SCOUT, context=0), "context must be a number of tokens, 1 or more"),
        (lambda: decode_step(SCOUT, scheme="int3"), "scheme = 'int3' is not known"),
        (lambda: decode_step(SCOUT).mbu(0), "A speed must be above 0"),
        (lambda: distinct_experts(16, -1), "tokens must be 0 or more, not -1"),
        (lambda: distinct_experts(4, 2, 1, [0.5, 0.5]), "2 chances for 4 experts"),
        (lambda: distinct_experts(2, 2, 1, [0.5, 0.6]), "sum to top_k = 1, not to 1.1"),
        (lambda: distinct_experts(2, 2, 1, [1.5, -0.5]), "must lie between 0 and 1"),
        (lambda: decode_step(SCOUT, chances=[[1 / 16] * 16]), "1 lists of chances for 48 layers"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_distinct_experts_of_a_real_model():
    """Measured loads of the shipped model against batches drawn from its own tokens."""
    model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32).eval()
    tokens = torch.randint(0, 2000, (4, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), trace(model) as seen:
        model(tokens)
    choice = seen.router[3].choice.flatten()
    p = torch.bincount(choice, minlength=16) / len(choice)
    draws = [choice[torch.randperm(len(choice))[:16]].unique().numel() for _ in range(300)]
    expected = distinct_experts(16, 16, 1, p.tolist())
    assert abs(sum(draws) / len(draws) - expected) < 0.5
