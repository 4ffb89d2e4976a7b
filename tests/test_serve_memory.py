"""Bytes of the cache: published numbers, the spec's table, and what a real cache holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama4 as ml4
from minillama4.explore import kv_entries
from minillama4.serve.memory import kv_bytes, kv_bytes_per_slot, kv_slots
from tests.reference import small

SCOUT, MAVERICK = ml4.Llama4Config.scout(), ml4.Llama4Config.maverick()
GIB = 2**30
TABLE = {  # tokens: GiB with all layers full, and with RoPE layers bounded (spec, section 13)
    8_192: (1.5, 1.5),
    32_768: (6, 2.625),
    131_072: (24, 7.125),
    1_048_576: (192, 49.125),
    10_485_760: (1920, 481.125),
}


@pytest.mark.parametrize("config", [SCOUT, MAVERICK], ids=["scout", "maverick"])
@pytest.mark.parametrize("length", TABLE)
def test_the_table_of_the_spec(config, length):
    full, bounded = TABLE[length]
    assert kv_bytes(config, length, chunked=False) == full * GIB
    assert kv_bytes(config, length) == bounded * GIB


def test_the_numbers_of_the_speed_page():
    assert round(kv_bytes(SCOUT, 131_072) / 1e9, 2) == 7.65
    assert round(kv_bytes(SCOUT, 1_048_576) / 1e9, 1) == 52.7
    assert round(kv_bytes(SCOUT, 1_048_576, chunked=False) / 1e9) == 206


def test_one_token():
    assert kv_bytes_per_slot(SCOUT) == 4096
    assert kv_bytes(SCOUT, 1) == kv_bytes(SCOUT, 1, chunked=False) == 196_608
    further = kv_bytes(SCOUT, 100_001) - kv_bytes(SCOUT, 100_000)
    assert further == 49_152
    assert kv_bytes(SCOUT, 8192) - kv_bytes(SCOUT, 8191) == 196_608
    assert kv_bytes(SCOUT, 8193) - kv_bytes(SCOUT, 8192) == 49_152


def test_other_dtypes_and_no_text():
    assert kv_bytes(SCOUT, 9000, torch.float32) == 2 * kv_bytes(SCOUT, 9000)
    assert kv_bytes(SCOUT, 9000, torch.float8_e4m3fn) == kv_bytes(SCOUT, 9000) // 2
    assert kv_bytes(SCOUT, 0) == 0
    with pytest.raises(ValueError, match="0 or more, not -1"):
        kv_bytes(SCOUT, -1)


def test_without_chunks_everything_grows():
    config = SCOUT.replace(chunk=None)
    assert kv_bytes(config, 20_000) == kv_bytes(SCOUT, 20_000, chunked=False)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(0, 70),
    chunk=st.one_of(st.none(), st.integers(1, 20)),
    nope=st.sets(st.integers(0, 4)),
)
def test_what_the_explorers_count(length, chunk, nope):
    config = small().config.replace(chunk=chunk, nope_at=tuple(nope))
    slots = [kv_slots(config, layer, length) for layer in range(config.layers)]
    assert slots == kv_entries(config, length)
    assert kv_bytes(config, length) == sum(slots) * kv_bytes_per_slot(config)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("chunks", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_real_cache_with_every_slot_in_use(rows, chunks, dtype):
    """Read to one token before a border, then over it: RoPE layers stand at one whole chunk. A
    limit of just that length stops the NoPE layers from growing further than they need."""
    model = small(chunk=32, max_length=32 * chunks, dtype=dtype)
    tokens = torch.randint(28, (rows, 32 * chunks), generator=torch.Generator().manual_seed(0))
    cache = ml4.KVCache(model.config)
    model(tokens[:, :-1], cache=cache)
    model(tokens[:, -1:], cache=cache)
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert held == [kv_slots(model.config, at, 32 * chunks) for at in range(model.config.layers)]
    assert cache.bytes == rows * kv_bytes(model.config, 32 * chunks, dtype)


@pytest.mark.parametrize("length", [16, 20, 31])
def test_a_real_cache_within_its_first_chunk(length):
    model = small(chunk=32)
    cache = ml4.KVCache(model.config)
    model(torch.zeros(1, length, dtype=torch.int64), cache=cache)
    assert cache.bytes == kv_bytes(model.config, length, torch.float64)


def test_a_real_cache_never_needs_less_and_never_keeps_more_than_double():
    """At any length it holds what later tokens need; growth by doubling bounds the rest."""
    model = small(chunk=32, max_length=4096)
    cache = ml4.KVCache(model.config)
    for length in range(1, 200):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
        needed = kv_bytes(model.config, length, torch.float64)
        assert needed <= cache.bytes <= max(2 * needed, kv_bytes(model.config, 16, torch.float64))
