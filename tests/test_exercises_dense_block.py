"""Checks of *The dense block*: they pass what is right, and name what is wrong."""

from einops import einsum, rearrange

from minillama4.explore.exercises import dense_block
from tests.exercises import assert_mistakes_are_named, each

CHECKS = [dense_block.rms_norm, dense_block.grouped_scores, dense_block.block_parameters]


def right_norm(x, weight, eps):
    wide = x.float()
    size = (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    return weight * (wide / size).to(x.dtype)


def right_scores(q, k):
    grouped = rearrange(q, "b t (k r) d -> b t k r d", k=k.shape[2])
    scores = einsum(grouped, k, "b t k r d, b s k d -> b k r t s")
    return rearrange(scores, "b k r t s -> b (k r) t s") / q.shape[-1] ** 0.5


def right_count(width, heads, kv_heads, head_width, hidden):
    attention = 2 * width * head_width * (heads + kv_heads)
    return attention + 3 * width * hidden + 2 * width


def test_right_answers_pass():
    assert dense_block.rms_norm(right_norm).right
    assert dense_block.grouped_scores(right_scores).right
    assert dense_block.block_parameters(right_count).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=8)


def test_a_norm_that_overflows_in_half_precision_is_caught():
    def narrow(x, weight, eps):
        return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    verdict = dense_block.rms_norm(narrow)
    assert not verdict.right and "float16" in verdict.message


def test_a_count_that_is_nearly_right_is_refused():
    assert not dense_block.block_parameters(lambda *sizes: right_count(*sizes) + 1).right
    assert dense_block.block_parameters(lambda *sizes: float(right_count(*sizes))).right
