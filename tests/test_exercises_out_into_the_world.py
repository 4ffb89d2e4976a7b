"""Checks of *Out into the world*: they pass what is right, and name what is wrong."""

import gguf
import torch

from minillama4 import Llama4, Llama4Config
from minillama4.explore.exercises import out_into_the_world as world
from minillama4.serve.gguf import tensors
from minillama4.serve.llamacpp import llamacpp_length
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [world.right_until, world.unpack_q4_0, world.turn_experts]


def right_length(chunk, floor_scale):
    config = Llama4Config.nano(chunk=chunk, floor_scale=floor_scale, max_length=100_000)
    return llamacpp_length(config)


def right_numbers(block):
    kind = gguf.GGMLQuantizationType.Q4_0
    return torch.from_numpy(gguf.quants.dequantize(block.numpy(), kind).copy())


def right_experts(gate_up):
    e, m, both = gate_up.shape
    config = Llama4Config.nano(experts=e, width=m, expert_hidden=both // 2, layers=1)
    model = Llama4(config)
    model.blocks[0].ffn.experts.gate_up.data = gate_up
    named = dict(tensors(model))
    return torch.stack([named[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up")])


def test_the_librarys_own_answers_pass():
    for check, answer in zip(CHECKS, (right_length, right_numbers, right_experts), strict=True):
        verdict = check(answer)
        assert verdict.right, verdict


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=6)


@each(CHECKS)
def test_an_unfinished_answer_is_told(check):
    assert_unfinished_is_told(check)
