"""The fixed program: step after step the logits of the full forward, whatever it is made of."""

import copy
import gc
import pickle
import shutil
import weakref
from collections import Counter
from unittest.mock import patch

import pytest
import torch
import torch._dynamo

import minillama4 as ml4
from minillama4.explore.steer import off, steer
from minillama4.serve import static
from minillama4.serve.decoder import Decoder
from minillama4.serve.quantize import quantize_model
from minillama4.serve.static import StaticDecoder
from tests.decoding import model_of, tokens_of
from tests.reference import place_patches, random_images, random_tokens, small_multimodal

KINDS = {
    "scout": {},
    "maverick": dict(moe_every=2, qk_norm=False),
    "two experts": dict(top_k=2),
    "tied": dict(tied=True),
}
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ["g++", "clang++", "cl"])), reason="torch.compile needs a compiler"
)


def decoded(decoder: StaticDecoder, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits (b, t - prompt + 1, v), of the prompt's last token and of each that follows."""
    first = decoder.read(tokens[:, :prompt])
    later = [decoder.step(token).clone() for token in tokens[:, prompt:].unbind(1)]
    return torch.stack([first, *later], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_equals_the_full_forward_over_several_chunks(kind, rows):
    model, tokens = model_of(**KINDS[kind]), tokens_of(rows, 37)
    with torch.inference_mode():
        full = model(tokens)
    decoder = StaticDecoder(model, rows, 40)
    for prompt in (3, 8, 21):  # the same memory, again and again
        found = decoded(decoder, tokens, prompt)
        torch.testing.assert_close(found, full[:, prompt - 1 :], rtol=1e-6, atol=1e-6)
    with torch.inference_mode():  # joined weights are the model's still
        torch.testing.assert_close(model(tokens), full)


def test_writes_what_generate_writes():
    model, tokens = model_of(), tokens_of(2, 5)
    expected = torch.tensor(ml4.complete(model, tokens, 40))
    decoder = StaticDecoder(model, 2, 45)
    first = decoder.read(tokens).argmax(-1)
    made = decoder.write(first, 39)
    assert torch.equal(torch.cat([first[:, None], made], dim=1), expected)
    assert decoder.cache.lengths == (44, 44)


def test_memory_does_not_grow_and_is_bounded_by_chunks():
    model = model_of()
    decoder = StaticDecoder(model, 1, 40)
    before = decoder.cache.bytes
    per_slot = 2 * model.config.kv_heads * model.config.head_width * 8
    assert before == per_slot * (3 * 8 + 40)  # three RoPE layers of one chunk, one NoPE layer
    decoder.read(tokens_of(1, 5))
    decoder.write(torch.tensor([1]), 30)
    assert decoder.cache.bytes == before


@pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=needs_compiler)])
def test_a_step_looks_at_what_is_written_and_at_nothing_else(how):
    """So it takes no longer in a long cache; rows may stand at different places."""
    model, tokens, mask = model_of(layers=2, nope_every=2), tokens_of(2, 9), torch.ones(2, 9)
    mask[0, :5] = 0
    decoder = StaticDecoder(model, 2, 40, how=how)
    token = decoder.read(tokens, mask.bool()).argmax(-1)
    expected = decoder.write(token, 12)
    token = decoder.read(tokens, mask.bool()).argmax(-1)
    nope = decoder.cache.layers[1]
    nope.keys[:, :, 9 + 12 :] = nope.values[:, :, 9 + 12 :] = torch.nan
    assert torch.equal(decoder.write(token, 12), expected)
    nope.values[1, :, 9 + 11] = torch.nan  # the last one that was written
    assert decoder.step(token)[1].isnan().all()


INT4 = dict(width=64, head_width=16, heads=4, expert_hidden=64, dense_hidden=128)


@pytest.mark.parametrize("changes", [{}, dict(moe_every=2), dict(top_k=2)])
@pytest.mark.parametrize("what", ["experts", "all"])
def test_int4_through_the_cpu_kernel(changes, what):
    model = quantize_model(model_of(torch.float32, **INT4, **changes), what, group=32)
    tokens = tokens_of(2, 30)
    with torch.inference_mode():
        full = model(tokens)[:, 2:]
    found = decoded(StaticDecoder(model, 2, 30), tokens, 3)
    apart = (found - full).norm(dim=-1) / full.norm(dim=-1)
    assert 0 < apart.median() < 0.05  # activations are rounded to bfloat16, and nothing else


@pytest.mark.parametrize("changes", [{}, dict(moe_every=2), dict(top_k=2)])
@pytest.mark.parametrize("what", ["experts", "blocks"])
def test_int4_through_the_gpus_kernels(changes, what):
    """In Triton's interpreter, on few and short steps: it is slow."""
    pytest.importorskip("triton", reason="Triton runs on Linux alone")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = dict(vocab_size=256, heads=2, kv_heads=1, layers=4)
    plain = model_of(torch.float32, **(INT4 | dict(width=32, expert_hidden=32) | sizes | changes))
    model = quantize_model(plain, what, group=32).to(device)
    exact = copy.deepcopy(model)
    tokens = tokens_of(1, 12).to(device)
    with torch.inference_mode():
        full = exact(tokens)[:, 5:]
    found = decoded(StaticDecoder(model.half(), 1, 12, how="eager", kernels=True), tokens, 6)
    apart = (found.float() - full).norm(dim=-1) / full.norm(dim=-1)
    assert 0 < apart.median() < 0.02


@needs_compiler
def test_compiled_it_is_the_same_program_and_is_compiled_once():
    from torch._dynamo.utils import counters

    sizes = dict(layers=2, nope_every=2, max_length=1100, **INT4)
    model = quantize_model(model_of(torch.float32, **sizes), "all", group=32)
    tokens = tokens_of(1, 5)
    eager, compiled = (StaticDecoder(model, 1, 1100, how=how) for how in ("eager", "compiled"))
    counters.clear()
    torch._dynamo.reset()
    for decoder in (eager, compiled):
        decoder.read(tokens)
    token = torch.tensor([7])
    for _ in range(50):
        one, other = eager.step(token), compiled.step(token)
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)
        token = one.argmax(-1)
    with patch.object(StaticDecoder, "look", side_effect=AssertionError("not compiled")):
        compiled.write(token, 1000)
    assert compiled.cache.lengths == (1055,)
    assert counters["stats"]["unique_graphs"] == 1


@needs_compiler
def test_a_compiled_step_asks_tensors_and_settings_alone():
    """The rest cannot change: constants of the decoder, and functions and modules."""
    asked, left_out = Counter(), set()

    def watch(guards):
        kept = tensors_alone(guards)
        for guard, keep in zip(guards, kept, strict=True):
            asked.update([guard.guard_type] * keep)
            if not keep and guard.name.startswith("G["):
                left_out.add(guard.guard_type)
        return kept

    tensors_alone = static._tensors_alone
    decoder = StaticDecoder(model_of(layers=2, nope_every=2), 1, 40, how="compiled")
    decoder.read(tokens_of(1, 5))
    with patch.object(static, "_tensors_alone", watch):
        decoder.write(torch.tensor([1]), 3)
    assert set(asked) == {"TENSOR_MATCH", "GLOBAL_STATE"}
    assert asked["TENSOR_MATCH"] >= 2 * 8  # weights, cache, token, position
    code = {"MODULE_MATCH", "BUILTIN_MATCH", "CLOSURE_MATCH", "DUPLICATE_INPUT"}
    assert code & left_out and left_out <= code | {"TYPE_MATCH"}  # of globals


@needs_compiler
def test_compiled_decoders_are_not_taken_for_each_other():
    """Models of the same shapes, and one whose layers differ in kind: each writes its own text."""
    sizes = dict(layers=2, chunk=64, **INT4)  # caches of one size, whatever a layer is
    kinds = {}, dict(nope_every=1), dict(qk_norm=False), dict(temperature=False)
    models = [model_of(torch.float32, **(sizes | dict(nope_every=2) | kind)) for kind in kinds]
    models.append(model_of(torch.float32, nope_every=2, **sizes))
    with torch.no_grad():
        for parameter in models[-1].parameters():
            parameter.neg_()
    decoders = [StaticDecoder(model, 1, 40, how="compiled") for model in models]
    prompt = tokens_of(1, 5)
    expected = [ml4.complete(model, prompt, 30) for model in models]
    assert [ml4.complete(decoder, prompt, 30) for decoder in decoders] == expected
    assert len({tuple(text) for (text,) in expected}) == len(models)


@needs_compiler
def test_a_copy_of_a_compiled_decoder_has_a_life_of_its_own():
    model, prompt = model_of(torch.float32, layers=2, nope_every=2, **INT4), tokens_of(1, 5)
    decoder = StaticDecoder(model, 1, 40, how="compiled")
    expected = ml4.complete(decoder, prompt, 20)
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert ml4.complete(other, prompt, 20) == expected == ml4.complete(decoder, prompt, 20)


@needs_compiler
@pytest.mark.parametrize("how", ["eager", "compiled", "pieces"])
def test_a_decoder_that_is_dropped_gives_its_memory_back_at_once(how):
    """A cache may have gigabytes, and torch collects no circles when it finds no room."""
    decoder = StaticDecoder(model_of(), 1, 40, how="eager" if how == "pieces" else how)
    if how == "pieces":
        decoder._compile_pieces()
    decoder.read(tokens_of(1, 5))
    gc.collect()
    gc.disable()
    try:
        decoder.write(torch.tensor([1]), 3)
        left = weakref.ref(decoder.layers[0].keys)
        del decoder
        assert left() is None
    finally:
        gc.enable()


@needs_compiler
def test_in_compiled_pieces_as_a_graph_records_them():
    model = quantize_model(model_of(torch.float32, **INT4), "blocks", group=32)
    tokens = tokens_of(1, 12)
    eager, pieces = (StaticDecoder(model, 1, 30) for _ in range(2))
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        pieces._compile_pieces()
        one, other = (decoded(decoder, tokens, 4) for decoder in (eager, pieces))
    torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@needs_compiler
@pytest.mark.parametrize("whole", [False, True])
def test_the_gpus_kernels_compile_into_the_program(whole):
    """As operations that the compiler knows by name; computed by Triton's interpreter here."""
    pytest.importorskip("triton", reason="Triton runs on Linux alone")
    if torch.cuda.is_available():
        pytest.skip("where there is a GPU, the next test records the real thing")
    sizes = dict(heads=2, kv_heads=1, layers=2, nope_every=2, width=32, expert_hidden=32)
    model = quantize_model(model_of(torch.float32, **(INT4 | sizes)), "blocks", group=32).half()
    eager = StaticDecoder(model, 1, 12, kernels=True)
    how = "compiled" if whole else "eager"
    other = StaticDecoder(model, 1, 12, how=how, kernels=True)
    if not whole:
        other._compile_pieces()
    one, two = (decoded(decoder, tokens_of(1, 8), 5) for decoder in (eager, other))
    torch.testing.assert_close(one, two, rtol=0.05, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_as_a_cuda_graph_it_writes_a_thousand_tokens_without_compiling_again():
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    config = ml4.Llama4Config.mini(max_length=4096)
    model = quantize_model(ml4.Llama4(config).to("cuda", torch.bfloat16))
    graph, eager = (StaticDecoder(model, 1, 2048, how=how) for how in ("graph", "eager"))
    tokens = tokens_of(1, 100).cuda()
    first = graph.read(tokens).argmax(-1)
    graph.write(first, 1)
    before = counters["stats"]["unique_graphs"]
    graph.read(tokens)
    graph.write(first, 1000)
    assert counters["stats"]["unique_graphs"] == before
    tokens = tokens_of(1, 300).cuda()  # the same tokens to both: their own choices would part
    one, other = (decoded(decoder, tokens, 100) for decoder in (graph, eager))
    torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * other.abs().max().item())


def test_says_what_does_not_fit():
    model = model_of()
    for wrong, message in (
        (dict(rows=0, length=8), "from 1 on"),
        (dict(rows=1, length=8.5), "whole numbers"),
        (dict(rows=1, length=65), "max_length of 64"),
        (dict(rows=1, length=8, how="fast"), "none of eager, compiled"),
        (dict(rows=1, length=8, how="graph"), "on a GPU alone"),
    ):
        with pytest.raises(ValueError, match=message):
            StaticDecoder(model, **wrong)
    decoder = StaticDecoder(model, 1, 8)
    with pytest.raises(RuntimeError, match="read"):
        decoder.step(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"\(1, up to 8\)"):
        decoder.read(tokens_of(2, 3))
    decoder.read(tokens_of(1, 6))
    with pytest.raises(ValueError, match="No room for 3 more tokens after 6"):
        decoder.write(torch.tensor([1]), 3)
    with ml4.trace(model), pytest.raises(ValueError, match="hooks"):
        StaticDecoder(model, 1, 8)


# ---------------------------------------------------------------------- in place of a model
@pytest.mark.parametrize("more", [{}, dict(temperature=0.8, seed=3, top_k=50)])
def test_generate_writes_the_same_through_it(more):
    """Prompts of three lengths, chunk borders crossed at other steps; one decoder, two batches."""
    model = model_of()
    decoder = StaticDecoder(model, 3, 48)
    for lengths in ((3, 11, 8), (16, 1, 7)):
        prompts = [tokens_of(3, n)[row, :n].tolist() for row, n in enumerate(lengths)]
        expected = ml4.complete(model, prompts, 30, **more)
        assert ml4.complete(decoder, prompts, 30, **more) == expected
        stop = expected[1][9]  # a token that ends at least one row early
        ended = ml4.complete(model, prompts, 30, stop=stop, **more)
        assert ml4.complete(decoder, prompts, 30, stop=stop, **more) == ended
        assert sum(map(len, ended)) < 90


def test_generate_reads_images_through_it():
    model = small_multimodal()
    tokens = place_patches(model.config, random_tokens(model.config, 1, 11), (0, 3))
    decoder = StaticDecoder(model, 1, 40)
    images = random_images(model.config, 2, torch.float64)
    one, other = (ml4.complete(decoder, tokens, 12, images=image) for image in images[:, None])
    assert one == ml4.complete(model, tokens, 12, images=images[:1]) != other


def test_generate_through_it_refuses_what_would_go_wrong():
    model, tokens = model_of(), tokens_of(1, 5)
    decoder = StaticDecoder(model, 1, 20)
    with pytest.raises(ValueError, match=r"decoder was made for.*20.*at most 15"):
        ml4.complete(decoder, tokens, 16)
    with pytest.raises(ValueError, match="a cache of its own"):
        ml4.complete(decoder, tokens, 3, cache=ml4.KVCache(model.config))
    with pytest.raises(ValueError, match=r"shape \(1, up to 20\)"):
        ml4.complete(decoder, tokens_of(2, 5), 3)
    assert len(ml4.complete(decoder, tokens, 15)[0]) == 15
    for other in (lambda: decoder.read(tokens), lambda: decoder.write(torch.tensor([3]), 2)):
        one = ml4.generate(decoder, tokens, 5)
        next(one)
        other()
        with pytest.raises(RuntimeError, match="something else since"):
            next(one)
    with pytest.raises(TypeError, match="Llama4 or a StaticDecoder"):
        ml4.complete(Decoder(model), tokens, 3)


def test_a_text_that_fails_leaves_nothing_behind():
    """Not its NaN, which a hidden slot would pass on; nor a length that no position agrees with."""
    model = small_multimodal()
    tokens = place_patches(model.config, random_tokens(model.config, 1, 11), (0, 3))
    images = random_images(model.config, 1, torch.float64)
    decoder, short = StaticDecoder(model, 1, 40), random_tokens(model.config, 1, 3)
    with pytest.raises(ValueError, match="or an image"):
        ml4.complete(decoder, tokens, 8, images=images * torch.nan)
    assert ml4.complete(decoder, short, 20) == ml4.complete(model, short, 20)
    with pytest.raises(IndexError):
        ml4.complete(decoder, torch.tensor([[1, 2, 999]]), 8)
    cut = patch.object(type(model.blocks[0]), "forward", side_effect=KeyboardInterrupt)
    with cut, pytest.raises(KeyboardInterrupt):  # in the middle of a reading
        ml4.complete(decoder, short, 8)
    with pytest.raises(RuntimeError, match="Nothing has been read"):
        decoder.step(torch.tensor([1]))
    assert ml4.complete(decoder, short, 20) == ml4.complete(model, short, 20)


def test_long_prompts_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr("minillama4.serve.static.PIECE", 5)
    model, tokens = model_of(), tokens_of(1, 23)
    read = []
    model.embed.register_forward_hook(lambda part, given, out: read.append(given[0].shape[1]))
    monkeypatch.setattr("minillama4.serve.static.flat", lambda model: True)  # despite the hook
    decoder = StaticDecoder(model, 1, 40)
    assert ml4.complete(decoder, tokens, 10) == ml4.complete(model, tokens, 10)
    assert read[:5] == [5, 5, 5, 5, 3]


def test_images_are_read_with_prompts_of_unequal_length():
    model = small_multimodal()
    tokens = place_patches(model.config, random_tokens(model.config, 2, 11), (0, 3), (1, 2))
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 8:] = False
    more = dict(images=random_images(model.config, 2, torch.float64), attention_mask=mask)
    decoder = StaticDecoder(model, 2, 40)
    assert ml4.complete(decoder, tokens, 12, **more) == ml4.complete(model, tokens, 12, **more)


def test_a_model_that_was_changed_is_refused():
    model, tokens = model_of(), tokens_of(1, 5)
    decoder = StaticDecoder(model, 1, 40)
    with steer(model, off(0)), pytest.raises(ValueError, match="watched by hooks"):
        ml4.complete(decoder, tokens, 3)
    assert ml4.complete(decoder, tokens, 3) == ml4.complete(model, tokens, 3)
    model.load_state_dict(model_of().state_dict())
    with pytest.raises(ValueError, match="changed"):
        ml4.complete(decoder, tokens, 3)


def test_a_step_takes_one_known_token_a_row():
    decoder = StaticDecoder(model_of(), 3, 40)
    decoder.read(tokens_of(3, 5))
    with pytest.raises(ValueError, match=r"shape \(3,\), one a row, not \(1,\)"):
        decoder.step(torch.tensor([1]))
    for wrong in (-1, 256):
        with pytest.raises(IndexError, match="0 to 255"):
            decoder.write(torch.tensor([1, wrong, 2]), 2)
    with pytest.raises(ValueError, match="not list"):
        decoder.read([1, 2])
