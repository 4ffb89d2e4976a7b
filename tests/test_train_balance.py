"""Balancing: the formulas, their gradients, what is left behind, stops, and two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import minillama4 as ml4
from minillama4.train.balance import KINDS, SCOPES, balance, choose_with_bias
from minillama4.train.loop import TrainSettings, next_token_loss, train

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = TrainSettings(steps=12, warmup=3, save_every=5)
SHORT = TrainSettings(steps=2)
TEXT = torch.arange(4000) * 7 % 64
WAYS = (
    dict(kind="none"),
    dict(kind="aux", over="row", weight=1.0),
    dict(kind="aux", over="batch", weight=1.0),
    dict(kind="aux", over="many", weight=1.0, memory=4),
    dict(kind="bias", rate=0.02),
)
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.get("over", way["kind"]))


def fresh(**changes):
    torch.manual_seed(0)
    return ml4.Llama4(ml4.Llama4Config.nano(vocab_size=64, patch_token=63, **changes))


def rows(step=0, rank=0, world=1):
    draw = torch.Generator().manual_seed(step)
    starts = torch.randint(0, len(TEXT) - 40, (8,), generator=draw)[rank::world]
    return torch.stack([TEXT[s : s + 17] for s in starts])


def routed(model, tokens):
    """Logits (b, t, e) and choices (b, t, k) of every layer with experts, with their graph."""
    kept = {}

    def keep(layer):
        def hook(router, inputs, output):
            shape = (*tokens[:, :-1].shape, -1)
            kept[layer] = router.logits(inputs[0]).view(shape), output[1].view(shape)

        return hook

    moe = model.config.moe_layers
    hooks = [model.blocks[i].ffn.router.register_forward_hook(keep(i)) for i in moe]
    model(tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    return list(kept.values())


def even_out(logits, choice):
    """e · Σ f · P, written with loops: logits (n, e), choice (n, k)."""
    experts = logits.shape[-1]
    chance = logits.softmax(-1)
    total = torch.zeros(())
    for e in range(experts):
        total = total + (choice == e).float().mean().item() * chance[:, e].mean()
    return experts * total


def skew(model, size=3.0):
    """Routers that prefer expert 0."""
    with torch.no_grad():
        for i in model.config.moe_layers:
            router, inner = model.blocks[i].ffn.router, model.blocks[i].ffn_norm
            router.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(i))
            router.weight[0] += size * inner.weight / len(inner.weight)
    return model


def test_the_kinds_and_scopes_have_names():
    assert KINDS == ("none", "aux", "bias") and SCOPES == ("row", "batch", "many")


# The auxiliary loss ------------------------------------------------------------------------------
@pytest.mark.parametrize("top_k", [1, 2])
def test_over_a_batch_it_is_the_formula(top_k):
    model, tokens = skew(fresh(top_k=top_k)), rows()
    terms = [even_out(lg.flatten(0, 1), c.flatten(0, 1)) for lg, c in routed(model, tokens)]
    with balance(model, "aux", over="batch", weight=0.3) as balanced:
        value = balanced.loss(model, tokens)
    plain = next_token_loss(model, tokens)
    torch.testing.assert_close(value, plain + 0.3 * torch.stack(terms).mean())


def test_over_a_row_it_is_the_mean_of_the_rows():
    model, tokens = skew(fresh()), rows()
    terms = [
        even_out(logits, choice)
        for layer in routed(model, tokens)
        for logits, choice in zip(*layer, strict=True)
    ]
    with balance(model, "aux", over="row", weight=1.0) as balanced:
        value = balanced.loss(model, tokens)
    torch.testing.assert_close(value, next_token_loss(model, tokens) + torch.stack(terms).mean())


def test_over_many_batches_the_load_is_a_running_mean():
    model, memory = skew(fresh()), 3
    share = [torch.zeros(4) for _ in model.config.moe_layers]
    with balance(model, "aux", over="many", weight=1.0, memory=memory) as balanced:
        for step in range(6):
            tokens, terms = rows(step), []
            for i, (logits, choice) in enumerate(routed(model, tokens)):
                now = F.one_hot(choice.flatten(), 4).float().mean(0)
                share[i] += (now - share[i]) / min(step + 1, memory)
                terms.append(4 * (share[i] * logits.softmax(-1).mean((0, 1))).sum())
            expected = next_token_loss(model, tokens) + torch.stack(terms).mean()
            torch.testing.assert_close(balanced.loss(model, tokens), expected)


def test_the_first_of_many_batches_counts_as_one_batch():
    values = []
    for over in ("batch", "many"):
        model = skew(fresh())
        with balance(model, "aux", over=over, weight=1.0) as balanced:
            values.append(balanced.loss(model, rows()))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("over", SCOPES)
def test_an_even_load_gives_one_and_one_busy_expert_nearly_e(over):
    model, tokens = fresh(), rows()
    router = model.blocks[0].ffn.router
    layers = model.config.moe_layers
    with balance(model, "aux", over=over, weight=1.0) as balanced:
        for i in layers:  # the first of equal scores wins: every token to one expert, P even
            model.blocks[i].ffn.router.weight.data.zero_()
        torch.testing.assert_close(
            balanced.loss(model, tokens) - next_token_loss(model, tokens), torch.tensor(1.0)
        )
    assert router.weight.grad is None
    model = fresh(layers=1)
    model.blocks[0].ffn_norm.weight.data.zero_()  # scores 0 for all: P is even, whatever f is
    with balance(model, "aux", over=over, weight=1.0) as balanced:
        gap = balanced.loss(model, tokens) - next_token_loss(model, tokens)
    torch.testing.assert_close(gap, torch.tensor(1.0))


def constant_input(model):
    """Every router reads the vector of ones, so that its rows set the scores of all tokens."""
    for i in model.config.moe_layers:
        model.blocks[i].ffn_norm.forward = lambda x: torch.ones_like(x)
    return model


@pytest.mark.parametrize("over", SCOPES)
def test_one_expert_for_all_with_certainty_gives_e(over):
    model = constant_input(fresh())
    for i in model.config.moe_layers:
        model.blocks[i].ffn.router.weight.data.zero_()[2] = 1.0  # 64 ahead of the others
    with balance(model, "aux", over=over, weight=1.0) as balanced:
        gap = balanced.loss(model, rows()) - next_token_loss(model, rows())
    torch.testing.assert_close(gap, torch.tensor(4.0))
    assert balanced.loads[0, :, 2].tolist() == [8 * 16] * 4


@pytest.mark.parametrize("over", SCOPES)
def test_its_gradient_pushes_the_busy_expert_down(over):
    model = constant_input(fresh())
    for i in model.config.moe_layers:
        model.blocks[i].ffn.router.weight.data.zero_()[2] = 0.01
    with balance(model, "aux", over=over, weight=1.0) as balanced:
        gap = balanced.loss(model, rows()) - next_token_loss(model, rows())
    gap.backward()
    for i in model.config.moe_layers:
        pull = model.blocks[i].ffn.router.weight.grad.sum(1)
        assert pull[2] > 0 and all(pull[e] < 0 for e in (0, 1, 3))  # descent lowers expert 2
        torch.testing.assert_close(pull.sum(), torch.tensor(0.0), atol=1e-4, rtol=0)


def test_a_weight_of_zero_changes_no_gradient():
    gradients = []
    for way in (dict(kind="none"), dict(kind="aux", weight=0.0)):
        model = fresh()
        with balance(model, **way) as balanced:
            balanced.loss(model, rows()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("over", SCOPES)
def test_training_with_it_evens_the_load(over):
    spread = []
    for weight in (0.0, 0.1):
        model = skew(fresh())
        with balance(model, "aux", over=over, weight=weight, memory=4) as balanced:
            train(model, rows, TrainSettings(steps=80, warmup=5), loss=balanced.loss)
        spread.append(balanced.loads[40:].sum(0).float().std(1).mean())
    assert spread[1] < 0.4 * spread[0]


@pytest.mark.parametrize("over", SCOPES)
def test_a_history_keeps_the_next_token_loss_apart(over):
    plain, sums = [], []

    def watched(model, tokens):
        with torch.no_grad():
            plain.append(next_token_loss(model, tokens).item())
        value = balanced.loss(model, tokens)
        sums.append(value.item())
        return value

    with balance(model := skew(fresh()), "aux", over=over, weight=0.3) as balanced:
        history = train(model, rows, SETTINGS, loss=watched)
    for row, loss, total in zip(history, plain, sums, strict=True):
        assert row["loss"] == pytest.approx(loss, abs=1e-6)
        assert row["loss"] + row["balance"] == pytest.approx(total, abs=1e-6)
        assert 0.25 < row["balance"] < 1.2  # weight times 1, if even, to weight times e


def test_where_nothing_is_added_nothing_is_noted():
    for way in (dict(kind="none"), dict(kind="bias")):
        with balance(model := fresh(), **way) as balanced:
            history = train(model, rows, SHORT, loss=balanced.loss)
        assert not any("balance" in row for row in history)
    with balance(model := fresh(), "aux", weight=1.0) as balanced:
        balanced.loss(model, rows())  # of no step
        history = train(model, rows, SHORT)
    assert not any("balance" in row for row in history)
    assert history[0]["loss"] == pytest.approx(next_token_loss(fresh(), rows()).item())


# The selection bias ------------------------------------------------------------------------------
def test_the_bias_chooses_and_weighs_nothing():
    logits = torch.tensor([[2.0, 1.0, -3.0]])
    score, choice = choose_with_bias(logits, torch.zeros(3), 1)
    assert choice.item() == 0 and score.item() == pytest.approx(torch.tensor(2.0).sigmoid())
    score, choice = choose_with_bias(logits, torch.tensor([-0.5, 0.0, 0.0]), 1)
    assert choice.item() == 1 and score.item() == pytest.approx(torch.tensor(1.0).sigmoid())
    both = choose_with_bias(logits, torch.tensor([0.0, 0.0, 9.0]), 2)[1]
    assert both.tolist() == [[2, 0]]


def test_zero_bias_is_the_router_itself():
    model, tokens = skew(fresh(top_k=2)), rows()
    plain = model(tokens)
    with balance(model, "bias"):
        torch.testing.assert_close(model(tokens), plain)


def test_the_bias_moves_towards_the_idle():
    model = skew(fresh())
    with balance(model, "bias", rate=0.25) as balanced:
        assert not balanced.bias.any()
        balanced.loss(model, rows())
        load = balanced.loads[0].float()
        torch.testing.assert_close(balanced.bias, 0.25 * (load.mean(1, keepdim=True) - load).sign())
        assert balanced.bias.unique().tolist() == [-0.25, 0.25] or 0 in balanced.bias


def test_the_bias_leaves_the_loss_and_evens_the_load():
    model = skew(fresh())
    with balance(model, "bias", rate=0.05) as balanced:
        plain = next_token_loss(skew(fresh()), rows())
        torch.testing.assert_close(balanced.loss(model, rows()), plain)
        for step in range(60):
            with torch.no_grad():
                balanced.loss(model, rows(step))
    first, last = balanced.loads[0].float(), balanced.loads[-20:].float().mean(0)
    assert last.std(1).mean() < 0.3 * first.std(1).mean()
    assert balanced.bias.abs().sum() > 0  # still to be read, for whoever wants to keep it


def test_the_bias_is_used_wherever_the_model_is_called():
    model, tokens = skew(fresh()), rows()
    with balance(model, "bias") as balanced:
        for i in model.config.moe_layers:
            model.blocks[i].ffn.router.balance_bias[3] = 10.0
        with ml4.trace(model) as seen:
            model(tokens)
        assert all((seen.router[i].choice == 3).all() for i in model.config.moe_layers)
        weight = seen.router[0].logits[..., 3].sigmoid()
        torch.testing.assert_close(seen.router[0].weight[..., 0], weight)
        balanced.loss(model, tokens)
    assert balanced.loads[0, :, 3].tolist() == [128] * 4


# Every way ---------------------------------------------------------------------------------------
@every_way
def test_gradients_reach_every_router(way):
    model = skew(fresh())
    with balance(model, **way) as balanced:
        balanced.loss(model, rows()).backward()
    for i in model.config.moe_layers:
        assert model.blocks[i].ffn.router.weight.grad.abs().sum() > 0


@every_way
def test_loads_are_what_the_trace_sees(way):
    model, tokens = skew(fresh()), rows()
    with balance(model, **way) as balanced, ml4.trace(model) as seen:
        balanced.loss(model, tokens)
    counted = torch.stack(
        [seen.router[i].choice.flatten().bincount(minlength=4) for i in model.config.moe_layers]
    )
    assert balanced.loads.shape == (1, 4, 4) and balanced.loads.dtype == torch.int64
    assert torch.equal(balanced.loads[0], counted) and counted.sum() == 4 * 8 * 16


def trace_of(model):
    """All that ``balance`` could leave behind."""
    modules = list(model.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    return list(model.state_dict()), hooks, [sorted(vars(m)) for m in modules]


@every_way
def test_nothing_is_left_behind(way):
    model, tokens = skew(fresh()), rows()
    before, plain = trace_of(model), model(tokens)
    with balance(model, **way) as balanced:
        balanced.loss(model, tokens)
    assert trace_of(model) == before
    torch.testing.assert_close(model(tokens), plain, rtol=0, atol=0)


@every_way
def test_nothing_is_left_behind_after_an_error(way):
    model, tokens = skew(fresh()), rows()
    before = trace_of(model)
    with pytest.raises(IndexError, match="vocabulary"), balance(model, **way) as balanced:
        balanced.loss(model, tokens + 64)
    assert trace_of(model) == before
    with balance(model, **way) as balanced:  # and again
        with pytest.raises(IndexError):
            balanced.loss(model, tokens + 64)
        assert balanced.loss(model, tokens).isfinite() and len(balanced.loads) == 1


@every_way
def test_a_resumed_run_is_the_run_never_stopped(way, tmp_path):
    whole, resumed = skew(fresh()), skew(fresh())
    with balance(whole, **way) as balanced:
        history = train(whole, rows, SETTINGS, loss=balanced.loss)
        kept = {k: v.clone() for k, v in whole.state_dict().items()}
    stopped = skew(fresh())
    with balance(stopped, **way) as first:
        train(stopped, rows, SETTINGS, loss=first.loss, folder=tmp_path, until=7)
    with balance(resumed, **way) as second:
        again = train(resumed, rows, SETTINGS, loss=second.loss, folder=tmp_path)
        state = resumed.state_dict()
        assert kept.keys() == state.keys()
        assert all(torch.equal(kept[name], state[name]) for name in kept)
    assert [r["loss"] for r in history] == [r["loss"] for r in again]
    together = torch.cat([first.loads, second.loads])
    assert torch.equal(together, balanced.loads)


@every_way
def test_dense_models_train_as_without_it(way):
    dense, plain = fresh(moe_at=()), fresh(moe_at=())
    with balance(dense, **way) as balanced:
        train(dense, rows, SETTINGS, loss=balanced.loss)
        for name in ("loads", "bias"):
            with pytest.raises(LookupError, match="no routers"):
                getattr(balanced, name)
    train(plain, rows, SETTINGS)
    pairs = zip(dense.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_layers_without_experts_are_passed_over():
    model = fresh(moe_every=2)
    with balance(model, "aux") as balanced:
        balanced.loss(model, rows()).backward()
    assert balanced.loads.shape == (1, 2, 4)


def test_half_precision_counts_and_balances_too():
    model = skew(fresh()).to(torch.bfloat16)
    for way in WAYS:
        with balance(model, **way) as balanced:
            value = balanced.loss(model, rows())
            value.backward()
        assert value.dtype == torch.float32 and value.isfinite()


# Errors ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(kind="softmax"), "none, aux, bias"),
        (dict(kind="aux", over="epoch"), "row, batch, many"),
        (dict(kind="aux", weight=-1.0), "weight"),
        (dict(kind="aux", over="many", memory=0), "memory"),
        (dict(kind="bias", rate=-0.1), "rate"),
    ],
)
def test_wrong_arguments_are_named(bad, word):
    model = fresh()
    before = trace_of(model)
    with pytest.raises(ValueError, match=word), balance(model, **bad):
        pass
    assert trace_of(model) == before


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="Linear"), balance(torch.nn.Linear(2, 2)):
        pass
    model, other = fresh(), fresh()
    with balance(model, "aux") as balanced:
        with pytest.raises(RuntimeError, match="layer 0"):
            balanced.loss(other, rows())
        with pytest.raises(LookupError, match=r"balanced\.loss"):
            _ = balanced.loads


def test_two_at_a_time_are_refused_and_the_first_goes_on():
    model = fresh()
    with balance(model, "bias") as balanced:
        with pytest.raises(RuntimeError, match="already"), balance(model, "aux"):
            pass
        balanced.loss(model, rows())
        assert balanced.bias.any()


# Two processes -----------------------------------------------------------------------------------
WORKER = """
import sys, torch
sys.path[:0] = {path}
from tests.test_train_balance import SETTINGS, WAYS, fresh, rows, skew
from minillama4.train.balance import balance
from minillama4.train.loop import train
from minillama4.train.processes import join_processes, process_rank
torch.set_num_threads(1)
results = []
with join_processes():
    rank, world = process_rank()
    for way in WAYS:
        model = skew(fresh())
        with balance(model, **way) as balanced:
            history = train(model, lambda s: rows(s, rank, world), SETTINGS, loss=balanced.loss)
            state = dict(model.state_dict())
        told = [[r["loss"], r.get("balance", 0.0)] for r in history]
        results.append((told, balanced.loads, state))
    torch.save(results, sys.argv[1] + str(rank))
"""


def test_two_processes_do_what_one_does(tmp_path):
    script, result = tmp_path / "worker.py", tmp_path / "result"
    script.write_text(WORKER.format(path=[str(ROOT)]))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, script, result], check=True, env=env, timeout=110, cwd=tmp_path)
    first, second = (torch.load(f"{result}{rank}", weights_only=True) for rank in (0, 1))
    for way, one, other in zip(WAYS, first, second, strict=True):
        alone = skew(fresh())
        with balance(alone, **way) as balanced:
            history = train(alone, rows, SETTINGS, loss=balanced.loss)
            state = dict(alone.state_dict())
        told = torch.tensor([[r["loss"], r.get("balance", 0.0)] for r in history])
        torch.testing.assert_close(torch.tensor(one[0]), told, rtol=1e-4, atol=1e-4)
        assert torch.equal(one[1], other[1])  # every process knows the whole load
        assert one[1].sum((1, 2)).tolist() == balanced.loads.sum((1, 2)).tolist()
        moved = (one[1] - balanced.loads).abs().sum() / balanced.loads.sum()
        assert moved < 0.01  # rounding may send a token elsewhere
        for name, value in state.items():
            assert torch.equal(one[2][name], other[2][name])
            torch.testing.assert_close(one[2][name], value, rtol=1e-2, atol=5e-3)


def test_large_scores_leave_the_choice_to_the_router():
    for scale in (1.0, 20.0, 300.0):
        logits = scale * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        for top_k in (1, 3):
            choice = choose_with_bias(logits, torch.zeros(8), top_k)[1]
            assert torch.equal(choice, logits.topk(top_k).indices)


def test_a_held_out_loss_counts_for_nothing():
    model = skew(fresh())
    with balance(model, "bias", rate=0.1) as balanced:
        balanced.loss(model, rows())
        bias = balanced.bias.clone()
        torch.testing.assert_close(
            balanced.loss(model.eval(), rows()), next_token_loss(model, rows())
        )
        assert len(balanced.loads) == 1 and torch.equal(balanced.bias, bias)


def test_a_run_balanced_in_another_way_does_not_resume(tmp_path):
    with balance(model := fresh(), "bias") as balanced:
        train(model, rows, SETTINGS, loss=balanced.loss, folder=tmp_path, until=5)
    model, refused = fresh(), pytest.raises(ValueError, match="balanced in another way")
    with balance(model, "aux", over="many") as balanced, refused:
        train(model, rows, SETTINGS, loss=balanced.loss, folder=tmp_path)


OTHER_WAYS = [
    (dict(kind="none"), dict(kind="aux", over="batch")),
    (dict(kind="aux", over="row"), dict(kind="none")),
    (dict(kind="aux", over="row"), dict(kind="aux", over="batch")),
    (dict(kind="aux", weight=0.1), dict(kind="aux", weight=0.2)),
    (dict(kind="aux", over="many"), dict(kind="aux", over="many", memory=9)),
    (dict(kind="bias", rate=0.1), dict(kind="bias", rate=0.2)),
]


@pytest.mark.parametrize("there, now", OTHER_WAYS)
def test_other_settings_of_the_balance_do_not_resume(tmp_path, there, now):
    with balance(model := fresh(), **there) as balanced:
        train(model, rows, SETTINGS, loss=balanced.loss, folder=tmp_path, until=5)
    before = (tmp_path / "training.pt").read_bytes()
    told = r"balanced in another way \(there: .*; now: .*\)"
    with balance(model := fresh(), **now) as balanced, pytest.raises(ValueError, match=told):
        train(model, rows, SETTINGS, loss=balanced.loss, folder=tmp_path)
    assert (tmp_path / "training.pt").read_bytes() == before
    with balance(model := fresh(), **there) as balanced:
        assert len(train(model, rows, SETTINGS, loss=balanced.loss, folder=tmp_path)) == 12


def test_what_balances_nothing_resumes_a_plain_run(tmp_path):
    train(fresh(), rows, SETTINGS, folder=tmp_path, until=5)
    with balance(model := fresh(), "none") as balanced:
        train(model, rows, SETTINGS, loss=balanced.loss, folder=tmp_path, until=8)
    with balance(model, "aux", weight=0.1), pytest.raises(ValueError, match="there: not at all"):
        train(model, rows, SETTINGS, folder=tmp_path)


def test_a_state_that_does_not_say_how_it_was_balanced_resumes(tmp_path):
    with balance(model := fresh(), "bias") as balanced:
        train(model, rows, SETTINGS, loss=balanced.loss, folder=tmp_path, until=5)
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    del state["facts"]["balanced"]  # as written by older versions
    torch.save(state, tmp_path / "training.pt")
    with balance(model := fresh(), "bias") as balanced:
        train(model, rows, SETTINGS, loss=balanced.loss, folder=tmp_path)
    assert balanced.loads.shape == (7, 4, 4)


def test_a_loss_outside_its_with_says_so():
    with balance(model := fresh(), "aux") as balanced:
        pass
    with pytest.raises(RuntimeError, match="inside the `with`"):
        balanced.loss(model, rows())
