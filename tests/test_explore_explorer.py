"""The routing explorer from Python's side: every knob is turned as the browser turns it."""

import base64
import json
import re
import time

import pytest
import torch

pytest.importorskip("anywidget", reason="the views need the notebooks' extras")

import minillama4 as ml4
from minillama4.explore import routing_explorer, steer, trace
from minillama4.explore.edits import losses
from minillama4.explore.reading import unpack
from minillama4.explore.script import STATIC, page_script, widget_script
from minillama4.explore.steer import force, off
from minillama4.explore.stored import STEPS, ZERO

TEXT = "def area(a):\n    return a * a"
SAMPLES = {"code": "x = [1, 2]", "prose": "The <b>house</b> & </script> stood."}


@pytest.fixture(scope="module")
def tokenizer():
    return ml4.load_tokenizer()


def llama(config, seed=0):
    torch.manual_seed(seed)
    model = ml4.Llama4(config)
    with torch.no_grad():
        for block in model.blocks:
            if hasattr(block.ffn, "router"):
                block.ffn.router.weight.mul_(8)
    return model.eval()


@pytest.fixture(scope="module")
def models(tokenizer):
    known = dict(vocab_size=tokenizer.vocab_size, patch_token=tokenizer.special["<|patch|>"])
    scout = llama(ml4.Llama4Config.mini(layers=4, **known))
    maverick = llama(ml4.Llama4Config.mini(layers=4, moe_every=2, experts=32, **known), seed=1)
    return {"Scout": scout, "Maverick": maverick}


@pytest.fixture
def view(models, tokenizer):
    return routing_explorer(models, tokenizer, TEXT, SAMPLES, layer=1)


def from_browser(view, **values):
    """What JavaScript's save_changes does: the message of the widget protocol, handled."""
    view._handle_msg({"content": {"data": {"method": "update", "state": values}}, "buffers": []})


def ids_of(tokenizer, text):
    return torch.tensor([[tokenizer.begin, *tokenizer.encode(text)]])


def choices(state):
    sizes = (len(state["moe"]), len(state["pieces"]), state["top_k"])
    return unpack(state["choice"], *sizes)


def page_values(view):
    return json.loads(re.search(r"const values = (\{.*\});", view.to_html()).group(1))


# ------------------------------------------------------------------ models and losses
def test_the_losses_are_the_models(view, models, tokenizer):
    ids = ids_of(tokenizer, TEXT)
    with torch.no_grad():
        expected = losses(models["Scout"](ids), ids)[0]
    torch.testing.assert_close(torch.tensor(view.state["loss"]), expected, atol=1e-4, rtol=0)


def test_another_model_reads_the_text(view, models, tokenizer):
    from_browser(view, model="Maverick")
    assert (view.state["model"], view.state["experts"], view.state["moe"]) == (
        *("Maverick", 32),
        [1, 3],
    )
    with trace(models["Maverick"]) as seen, torch.no_grad():
        models["Maverick"](ids_of(tokenizer, TEXT))
    assert torch.equal(choices(view.state)[1], seen.router[3].choice[0])


def test_a_model_that_cannot_read_the_text_is_not_taken(models, tokenizer):
    short = llama(ml4.Llama4Config.mini(layers=4, max_length=20))
    view = routing_explorer({**models, "short": short}, tokenizer, "a" * 5)
    from_browser(view, text="1 2 3 4 5 6 7 8 9 10 11 12 13 14")
    before = view.state
    from_browser(view, model="short")
    assert "at most 20 fit here" in view.message
    assert (view.model, view.state) == (before["model"], before)


def test_who_writes_the_notebook_is_told_at_once(models, tokenizer):
    with pytest.raises(ValueError, match="models is empty"):
        routing_explorer({}, tokenizer)
    with pytest.raises(ValueError, match=r"Sample 'long': The text has .* at most 400"):
        routing_explorer(models, tokenizer, samples={"long": "x, " * 500})
    with pytest.raises(Exception, match="there is no model 'Behemoth': there are Scout, Maverick"):
        routing_explorer(models, tokenizer, compare="model", other="Behemoth")
    with pytest.raises(ValueError, match="wants compare"):
        routing_explorer(models, tokenizer, other=3)
    with pytest.raises(ValueError, match="at most 400"):
        routing_explorer(models, tokenizer, compare="text", other="x, " * 500)


def test_damaged_weights_are_named(models, tokenizer):
    broken = llama(models["Scout"].config)
    view = routing_explorer(broken, tokenizer, TEXT)
    broken.norm.weight.data[0] = float("nan")
    from_browser(view, text="anything")
    assert "not finite: its weights are damaged" in view.message


# ------------------------------------------------------------------ load by domain
def test_the_load_of_each_domain_is_counted(view, models, tokenizer):
    for name, model in models.items():
        assert list(view.loads[name]) == list(SAMPLES)
        for label, text in SAMPLES.items():
            with trace(model) as seen, torch.no_grad():
                model(ids_of(tokenizer, text))
            expected = [seen.router[layer].load.tolist() for layer in seen.router]
            assert view.loads[name][label] == expected


def test_held_out_tokens_take_the_samples_place(models, tokenizer):
    rows = torch.randint(2000, (40, 128), generator=torch.Generator().manual_seed(0))
    view = routing_explorer(models, tokenizer, TEXT, SAMPLES, held_out={"mixed": rows})
    assert list(view.loads["Scout"]) == ["mixed"]
    assert all(sum(load) == 40 * 128 for load in view.loads["Scout"]["mixed"])


# ------------------------------------------------------------------ comparing
def test_another_text_is_read_beside_the_first(view):
    from_browser(view, compare="text")
    assert view.other["text"] == SAMPLES["code"]  # the first sample, until another is typed
    from_browser(view, other_text="a * a")
    assert (view.other["text"], view.other["model"]) == ("a * a", "Scout")
    from_browser(view, other_text="x, " * 500)
    assert "at most 400 fit here" in view.other_message and view.other["text"] == "a * a"
    from_browser(view, other_text="b")
    assert view.other_message == ""


def test_another_model_reads_the_same_text_and_follows_it(view):
    from_browser(view, compare="model", other_model="Maverick")
    assert (view.other["text"], view.other["model"]) == (TEXT, "Maverick")
    from_browser(view, text="12 + 30")
    assert view.other["text"] == "12 + 30"
    from_browser(view, compare="off")
    assert view.other == {}


def test_another_layer_needs_no_reading(view):
    assert view.other_layer == 2  # the next one with experts
    from_browser(view, compare="layer", other_layer=3)
    assert (view.other, view.other_layer) == ({}, 3)
    with pytest.raises(Exception, match="there is no layer 4"):
        view.other_layer = 4


@pytest.mark.parametrize(
    ("compare", "other", "trait"),
    [
        ("text", "a", "other_text"),
        ("layer", 3, "other_layer"),
        ("model", "Maverick", "other_model"),
    ],
)
def test_a_comparison_can_be_opened_from_code(models, tokenizer, compare, other, trait):
    view = routing_explorer(models, tokenizer, compare=compare, other=other, same_run=True)
    assert (view.compare, getattr(view, trait), view.same_run) == (compare, other, True)
    assert bool(view.other) == (compare != "layer")


# ------------------------------------------------------------------ switching off, forcing, undoing
@pytest.mark.parametrize(("kind", "choose"), [("off", off), ("force", force)])
def test_an_edit_is_answered_with_choices_and_losses(view, models, tokenizer, kind, choose):
    expert = int(choices(view.state)[1].flatten().mode().values)
    from_browser(view, edits=[{"layer": 1, "kind": kind, "expert": expert}])
    ids = ids_of(tokenizer, TEXT)
    steered = steer(models["Scout"], choose(expert), layers=[1])
    with torch.no_grad(), steered, trace(models["Scout"]) as seen:
        expected = losses(models["Scout"](ids), ids)[0]
    torch.testing.assert_close(torch.tensor(view.steered["loss"]), expected, atol=1e-4, rtol=0)
    assert torch.equal(choices(view.steered)[3], seen.router[3].choice[0])  # later layers too
    assert view.steered["loss"] != view.state["loss"]
    from_browser(view, edits=[])
    assert view.steered == {} and view.steer_message == ""


def test_one_token_is_forced(view):
    edit = {"layer": 2, "kind": "force", "expert": 9, "token": 4}
    from_browser(view, edits=[edit])
    changed = choices(view.steered)[2][:, 0] != choices(view.state)[2][:, 0]
    assert changed.nonzero().flatten().tolist() in ([], [4])
    assert int(choices(view.steered)[2][4, 0]) == 9


def test_edits_stay_while_typing_but_not_those_of_single_tokens(view):
    every = {"layer": 2, "kind": "off", "expert": 9}
    from_browser(view, edits=[every, {"layer": 2, "kind": "force", "expert": 1, "token": 4}])
    from_browser(view, text=TEXT + " + 1")
    assert view.edits == [every]
    assert view.steered["text"] == TEXT + " + 1"
    from_browser(view, model="Maverick")  # its expert 9 is another one
    assert (view.edits, view.steered) == ([], {})


def test_an_edit_that_cannot_be_is_said_and_taken_back(view):
    good = [{"layer": 1, "kind": "off", "expert": 0}]
    from_browser(view, edits=good)
    steered = view.steered
    from_browser(view, edits=[{"layer": 1, "kind": "off", "expert": e} for e in range(16)])
    assert view.steer_message == "Layer 1 needs 1 of its experts: not all can be off."
    assert (view.edits, view.steered) == (good, steered)
    from_browser(view, edits=[{"layer": 1, "kind": "force", "expert": 16}])
    assert "no expert 16" in view.steer_message
    from_browser(view, edits=[])
    assert (view.edits, view.steer_message) == ([], "")


def test_no_error_of_a_callback_is_lost(view, monkeypatch):
    monkeypatch.setattr(view, "_read", lambda *args: 1 / 0)
    from_browser(view, compare="text")
    assert view.other_message.startswith("The model could not do this: ZeroDivisionError")
    from_browser(view, edits=[{"layer": 1, "kind": "off", "expert": 0}])
    assert view.steer_message == "The model could not do this: ZeroDivisionError: division by zero"
    assert view.edits == []


def test_an_empty_text_has_no_loss_and_no_error(view):
    from_browser(view, text="", edits=[{"layer": 1, "kind": "off", "expert": 0}])
    assert view.state["loss"] == [] == view.steered["loss"]
    assert (view.message, view.steer_message) == ("", "")
    view.to_html()


# ------------------------------------------------------------------ without a kernel
def test_the_page_holds_every_reading_and_each_expert_off(view, models, tokenizer):
    from_browser(view, text="a * a", compare="text")
    values = page_values(view)
    wanted = {"a * a", *SAMPLES.values()}
    assert {name: set(texts) for name, texts in values["texts"].items()} == {
        "Scout": wanted,
        "Maverick": wanted,
    }
    assert values["examples"][0] == ["this text", "a * a"]  # the way back to it
    stored = values["knockouts"]["Scout"]
    assert set(stored["a * a"]) == {"0", "1", "2", "3"}  # of this text, every layer
    assert set(stored[SAMPLES["prose"]]) == {"1"}  # of a sample, the layer shown
    from_browser(view, edits=[{"layer": 3, "kind": "off", "expert": 5}])
    change = torch.tensor(view.steered["loss"]) - torch.tensor(view.state["loss"])
    table = torch.frombuffer(bytearray(base64.b64decode(stored["a * a"]["3"])), dtype=torch.uint16)
    nats = (table.float().reshape(16, -1)[5] - ZERO) / STEPS
    torch.testing.assert_close(nats, change, atol=1 / STEPS, rtol=0)


def test_what_does_not_fit_is_left_out_the_least_needed_first(view, monkeypatch):
    whole = view.to_html()
    monkeypatch.setattr("minillama4.explore.stored.LIMIT", len(whole) - 3_000)
    values = page_values(view)
    assert len(values["texts"]["Scout"]) == 3 and "0" not in values["knockouts"]["Scout"][TEXT]
    monkeypatch.setattr("minillama4.explore.stored.LIMIT", 0)
    values = page_values(view)
    assert values["texts"].keys() == {"Scout"} and values["texts"]["Scout"].keys() == {TEXT}
    assert values["knockouts"] == {}


def test_a_real_llamas_experts_are_not_all_tried_out(view, monkeypatch):
    assert page_values(view)["knockouts"]
    monkeypatch.setattr("minillama4.explore.stored.RUNS", 0)
    values = page_values(view)
    assert values["knockouts"] == {} and len(values["texts"]["Scout"]) == 3


def test_a_saved_notebook_stays_small(tokenizer):
    config = ml4.Llama4Config.mini()
    text = "The square of 12 is 144, and " * 20
    view = routing_explorer({"a": llama(config), "b": llama(config, 1)}, tokenizer, text, SAMPLES)
    assert len(view.state["pieces"]) > 200
    assert len(view.to_html()) < 400_000


def test_the_page_of_a_model_without_routers(tokenizer):
    known = dict(vocab_size=tokenizer.vocab_size, patch_token=tokenizer.special["<|patch|>"])
    view = routing_explorer(llama(ml4.Llama4Config.nano(moe_at=(), **known)), tokenizer, "a text")
    assert "no router" in view.to_html()
    from_browser(view, edits=[{"layer": 0, "kind": "off", "expert": 0}])
    assert "Layer 0 has no router" in view.steer_message


# ------------------------------------------------------------------ the script
def test_the_files_join_into_one_module():
    for script in (widget_script(), page_script()):
        assert not re.search(r"^(import|export (?!default))", script, re.MULTILINE)
        names = re.findall(r"^(?:const|function|let) (\w+)", script, re.MULTILINE)
        assert len(names) == len(set(names)) > 50  # all share one scope
    assert widget_script().count("export default") == 1 and "standIn" not in widget_script()
    joined = page_script()
    for file in STATIC.glob("*.js"):  # none forgotten, and none imports what is not there
        assert file.read_text("utf-8").splitlines()[0] in joined
        for used, source in re.findall(
            r"import \{ ([^}]*) \} from \"./(\w+).js\"", file.read_text()
        ):
            other = (STATIC / f"{source}.js").read_text("utf-8")
            for name in used.split(", "):
                assert re.search(rf"^export (const|function) {name}\b", other, re.MULTILINE), name


# ------------------------------------------------------------------ quick enough to click at
def test_a_click_is_answered_within_100_ms(tokenizer):
    view = routing_explorer(llama(ml4.Llama4Config.mini()), tokenizer, "12 + 30 = 42, " * 6)
    assert 50 <= len(view.state["pieces"]) <= 75
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its CPU time is then the time of a quiet machine
    times = []
    try:
        for expert in range(9):
            began = time.process_time()
            from_browser(view, edits=[{"layer": 4, "kind": "off", "expert": expert}])
            times.append(time.process_time() - began)
            assert view.steered and not view.steer_message
    finally:
        torch.set_num_threads(threads)
    usual = 1000 * sorted(times)[len(times) // 2]
    print(f"an expert off in a text of {len(view.state['pieces'])} tokens: {usual:.0f} ms")
    assert usual < 100
