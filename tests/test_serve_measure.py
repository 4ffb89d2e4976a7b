"""The stop-watches measure what they say: rows that differ, the experts that a step reads."""

import pytest
import torch

import minillama4 as ml4
from minillama4.serve import measure
from minillama4.serve.static import StaticDecoder
from minillama4.serve.synthetic import synthetic_int4

CONFIG = ml4.Llama4Config.nano(width=128, expert_hidden=128, head_width=32, layers=4, experts=8)


def decoder(rows: int, skew: float = 0.0) -> StaticDecoder:
    return StaticDecoder(synthetic_int4(CONFIG, dtype=torch.float32, skew=skew), rows, 64)


def test_rows_of_a_batch_differ_and_are_the_same_each_time(monkeypatch):
    made = decoder(8)
    written, began, write = [], [], made.write

    def watched(token, count):
        began.append(len(token.unique()))
        written.append(write(token, count))
        return written[-1]

    monkeypatch.setattr(made, "write", watched)
    samples = measure.tpot(made, 20, steps=6, rounds=2)
    assert len(samples) == 2 and min(samples) > 0
    assert began[0] > 4 and len({tuple(row) for row in written[0].tolist()}) == 8
    assert all(torch.equal(written[0], again) for again in written[1:])
    keys = made.cache.layers[0].keys
    assert keys[:, :, :20].std() == pytest.approx(1, rel=0.1)
    assert not torch.equal(keys[0], keys[1])


def test_experts_read_counts_different_experts_of_the_measured_steps(monkeypatch):
    made = decoder(8)
    chosen = [[] for _ in made.layers]
    for seen, layer in zip(chosen, made.layers, strict=True):
        forward = layer.router.forward

        def watch(x, forward=forward, seen=seen):
            score, choice = forward(x)
            seen.append(len(set(choice.flatten().tolist())))
            return score, choice

        monkeypatch.setattr(layer.router, "forward", watch)
    measure.tpot(made, 20, steps=6, rounds=1)
    timed = [sum(seen[6:12]) / 6 for seen in chosen]  # a warm round of six steps comes first
    inner = [layer.experts for layer in made.layers]
    assert measure.experts_read(made, 20, steps=6) == pytest.approx(timed)
    assert all(1 < count <= 8 for count in timed)
    assert [layer.experts for layer in made.layers] == inner


def test_one_text_reads_one_expert_and_favourites_make_many_read_fewer():
    assert measure.experts_read(decoder(1), 20, steps=4) == [1.0] * 4
    even, skewed = (sum(measure.experts_read(decoder(16, s), 20, steps=8)) for s in (0.0, 2.0))
    assert skewed < 0.8 * even


def test_memory_speed_takes_warm_rounds_that_it_does_not_count(monkeypatch):
    asked, seconds = [], measure.seconds
    monkeypatch.setattr(
        measure, "seconds", lambda run, *rest: asked.append(rest) or seconds(run, *rest)
    )
    speed = measure.memory_speed("cpu", 2**20, rounds=3, warm=7)
    assert [rest[1:] for rest in asked] == [(3, 7), (3, 7)]
    assert speed["read"] > 0 and speed["copy"] > 0
