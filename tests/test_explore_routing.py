"""Measures of routing: known answers on routing made by hand, and about 0 for a router by lot."""

import dataclasses
import math

import pytest
import torch

from minillama4.explore.routing import (
    adjusted_rand,
    coactivation,
    effective_experts,
    joint,
    load,
    mutual_information,
    saturation,
    specialisation,
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def chosen(experts, *shape, seed=0):
    return torch.randint(experts, shape, generator=draw(seed))


# How even ----------------------------------------------------------------------------------------


def test_load_counts_choices_of_any_shape():
    choice = torch.tensor([[0, 2], [2, 2]])
    assert load(choice, 4).tolist() == [1, 0, 3, 0]
    assert load(choice[..., None], 4).dtype == torch.int64
    with pytest.raises(ValueError, match="expert 2"):
        load(choice, 2)
    with pytest.raises(TypeError, match="whole numbers"):
        load(choice.float(), 4)


def test_effective_experts_lies_between_one_and_all():
    assert effective_experts(torch.tensor([5, 0, 0, 0])).item() == pytest.approx(1)
    assert effective_experts(torch.tensor([3, 3, 3, 3])).item() == pytest.approx(4)
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    many = effective_experts(shares)
    assert many.shape == (2,) and many[0].item() == pytest.approx(2)
    assert many[1].item() == pytest.approx(effective_experts(shares[1] * 40).item())
    for seed in range(5):
        some = torch.rand(16, generator=draw(seed))
        assert 1 <= effective_experts(some) <= 16
    with pytest.raises(ValueError, match="some expert"):
        effective_experts(torch.zeros(4))


# How specialised ---------------------------------------------------------------------------------


def test_information_of_known_tables():
    assert mutual_information(torch.eye(4)) == pytest.approx(math.log(4))
    assert mutual_information(torch.outer(torch.tensor([1, 2]), torch.tensor([3, 1]))) < 1e-12
    p, q = torch.tensor([[0.4, 0.1], [0.1, 0.4]], dtype=torch.float64), 0.25
    expected = (p * (p / q).log()).sum().item()
    assert mutual_information(p) == pytest.approx(expected)
    assert mutual_information(p * 60) == pytest.approx(expected)


def test_joint_counts_pairs():
    x, y = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0])
    assert joint(x, y).tolist() == [[0, 0, 1], [2, 0, 0]]
    assert joint(x, y, 3, 4).shape == (3, 4)
    with pytest.raises(ValueError, match="too small"):
        joint(x, y, 2, 2)


def test_one_expert_per_label_tells_all():
    labels = torch.arange(4).repeat(300)
    found = specialisation((labels + 1) % 4, labels, permutations=40)
    assert found.raw == pytest.approx(math.log(4)) and found.beyond_chance
    assert found.label_entropy == pytest.approx(math.log(4))
    assert 0.98 < found.share <= 1 and found.low <= found.excess <= found.high


def test_half_of_the_tokens_by_label():
    """A known answer: the label with chance one half, else an expert drawn by lot."""
    labels = chosen(4, 40_000)
    by_lot = chosen(4, 40_000, seed=1)
    choice = torch.where(torch.rand(40_000, generator=draw(2)) < 0.5, labels, by_lot)
    p = torch.full((4, 4), 0.5 / 16, dtype=torch.float64) + torch.eye(4) * 0.5 / 4
    found = specialisation(choice, labels, permutations=40)
    assert found.low < mutual_information(p) < found.high
    assert found.high - found.low < 0.05


@pytest.mark.parametrize("labels", [6, 500])
def test_a_router_that_draws_lots_tells_nothing(labels):
    """The raw count is well above 0, the more so with many labels; the excess is not."""
    inside, excess, raw = 0, 0, 0
    for seed in range(20):
        choice, label = chosen(16, 2000, seed=seed), chosen(labels, 2000, seed=100 + seed)
        found = specialisation(choice, label, permutations=60, seed=seed)
        inside += found.null_low <= found.raw <= found.null_high
        excess, raw = excess + found.excess / 20, raw + found.raw / 20
    assert raw > 0.015 and abs(excess) < 0.05 * raw
    assert inside >= 16  # 19 of 20 are expected


def rows_with_a_taste(seed, rows=48, length=50):
    """Each row prefers an expert of its own; its label has nothing to do with it."""
    taste = chosen(8, rows, 1, seed=seed)
    by_lot = torch.rand(rows, length, generator=draw(1000 + seed)) < 0.5
    choice = torch.where(by_lot, chosen(8, rows, length, seed=2000 + seed), taste)
    group = torch.arange(rows)[:, None].expand(rows, length)
    return choice, (group % 6).contiguous(), group


def test_rows_shuffled_whole_are_not_fooled_by_neighbours_that_are_alike():
    fooled = {"tokens": 0, "rows": 0}
    for seed in range(20):
        choice, labels, group = rows_with_a_taste(seed)
        more = {"permutations": 60, "seed": seed}
        fooled["tokens"] += specialisation(choice, labels, **more).beyond_chance
        fooled["rows"] += specialisation(choice, labels, groups=group, **more).beyond_chance
    assert fooled["tokens"] == 20 and fooled["rows"] <= 3


def test_rows_of_many_labels_are_shuffled_place_by_place():
    choice, _, group = rows_with_a_taste(0)
    tokens = chosen(30, *choice.shape, seed=3)
    assert not specialisation(choice, tokens, groups=group, permutations=60).beyond_chance
    assert specialisation(tokens % 8, tokens, groups=group, permutations=60).share > 0.3
    with pytest.raises(ValueError, match="one length"):
        specialisation(choice.flatten()[:-1], tokens.flatten()[:-1], groups=group.flatten()[:-1])


def test_given_the_token_rows_with_a_taste_of_their_own_do_not_fool():
    fooled = {"tokens": 0, "rows": 0}
    excess = 0
    for seed in range(20):
        choice, labels, group = rows_with_a_taste(seed)
        token = chosen(10, *choice.shape, seed=5000 + seed)
        more = {"given": token, "permutations": 60, "seed": seed}
        fooled["tokens"] += specialisation(choice, labels, **more).beyond_chance
        by_row = specialisation(choice, labels, groups=group, **more)
        fooled["rows"] += by_row.low > 0
        excess += by_row.excess / 20
    assert fooled["tokens"] == 20 and fooled["rows"] <= 3
    assert abs(excess) < 0.01
    with pytest.raises(ValueError, match="one label"):
        specialisation(choice, token, given=labels, groups=group)


def test_given_the_token_nothing_is_left_of_a_router_that_reads_tokens_only():
    """The domain decides the token, the token decides the expert."""
    domain = chosen(3, 6000)
    token = domain * 2 + chosen(6, 6000, seed=1)  # 0 to 9, several domains share one
    plain = specialisation(token % 4, domain, permutations=60)
    assert plain.beyond_chance and plain.excess > 0.05
    noisy = torch.where(torch.rand(6000, generator=draw(2)) < 0.3, chosen(4, 6000), token % 4)
    assert abs(specialisation(noisy, domain, given=token, permutations=60).excess) < 0.01
    by_domain = specialisation((token + domain) % 4, domain, given=token, permutations=60)
    assert by_domain.beyond_chance and by_domain.excess > 0.3


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Rows that follow their label with their own strength: the error is one of rows."""
    truth, held = [], 0
    results = []
    for seed in range(30):
        group = torch.arange(60)[:, None].expand(60, 100)
        labels = (group % 3).contiguous()
        strength = torch.rand(60, 1, generator=draw(seed))
        follows = torch.rand(60, 100, generator=draw(500 + seed)) < strength
        choice = torch.where(follows, labels, chosen(3, 60, 100, seed=900 + seed))
        results.append(specialisation(choice, labels, groups=group, permutations=2))
        truth.append(results[-1].raw)
    middle = sum(truth) / len(truth)
    for found in results:
        margin = (found.high - found.low) / 2
        held += abs(found.raw - middle) < margin
    assert held >= 25


def test_the_same_seed_gives_the_same_and_it_prints_rounded():
    choice, labels, _ = rows_with_a_taste(1)
    first, again = (specialisation(choice, labels, permutations=20) for _ in range(2))
    assert first == again
    assert "nats" in repr(first) and len(repr(first)) < 130
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.raw = 0


def test_what_does_not_fit_together_is_refused():
    for other in (chosen(4, 11), chosen(4, 5, 2)):  # as many tokens, but in another order
        with pytest.raises(ValueError, match="one value for each token"):
            specialisation(chosen(4, 2, 5), other)
    with pytest.raises(ValueError, match="one permutation"):
        specialisation(chosen(4, 10), chosen(4, 10), permutations=0)
    with pytest.raises(ValueError, match="empty"):
        mutual_information(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="two layers"):
        coactivation(chosen(4, 1, 10))
    with pytest.raises(ValueError, match="at least two"):
        specialisation(chosen(4, 10), chosen(4, 10), groups=torch.zeros(10, dtype=torch.int64))


# Layers, training, models ------------------------------------------------------------------------


def test_coactivation_finds_the_layer_that_copies():
    first, other = chosen(8, 3000), chosen(8, 3000, seed=1)
    found = coactivation(torch.stack([first, (first + 3) % 8, other]))
    assert found.excess[0, 1] > 1.9 and torch.equal(found.excess, found.excess.T)
    assert found.excess[0, 2].abs() < 0.01 and found.null[0, 2] > 0.003
    assert found.information[0, 0].item() == pytest.approx(
        effective_experts(load(first, 8)).log().item()
    )
    assert "3 layers" in repr(found)
    given = coactivation(torch.stack([first, (first + 3) % 8, other]), given=first)
    assert given.excess[0, 1].abs() < 0.01


def test_saturation_ends_at_one_and_starts_at_chance():
    last = chosen(4, 2, 5000)
    half = torch.where(torch.rand(2, 5000, generator=draw(5)) < 0.5, last, chosen(4, 2, 5000))
    history = torch.stack([chosen(4, 2, 5000, seed=9), half, last])
    found = saturation(history, torch.tensor([0, 10, 20]))
    assert found.same.shape == (3, 2) and (found.same[-1] == 1).all()
    assert (found.settled[0].abs() < 0.05).all() and (found.chance - 0.25).abs().max() < 0.01
    assert "3 times, 2 layers" in repr(found)
    with pytest.raises(ValueError, match="steps"):
        saturation(history, torch.tensor([0, 10]))
    one = saturation(torch.zeros(2, 1, 9, dtype=torch.int64), torch.tensor([0, 1]))
    assert one.settled.isnan().all() and "never half" in repr(one)  # nothing to decide


def test_adjusted_rand_does_not_mind_other_names():
    a, b = chosen(8, 4000), chosen(8, 4000, seed=1)
    names = torch.randperm(8, generator=draw(2))
    assert adjusted_rand(a, names[a]) == pytest.approx(1)
    assert abs(adjusted_rand(a, b)) < 0.01
    mixed = torch.where(torch.rand(4000, generator=draw(3)) < 0.5, a, b)
    assert 0.1 < adjusted_rand(a, mixed) < 0.5
    assert adjusted_rand(a, mixed) == pytest.approx(adjusted_rand(mixed, names[a]))
    assert adjusted_rand(torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)) == 1
