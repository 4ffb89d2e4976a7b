// The routing explorer: which expert reads which token, how sure the router was, and what if not.
//
// Two hosts. In a notebook `model` is anywidget's: a text typed here, or an expert switched off,
// goes to Python, which runs the Llama and sends back a reading. In an exported page `model` is a
// stand-in (stand_in.js) with readings made beforehand. Layers, tokens, the mouse and comparisons
// of layers are answered here, in both. Python joins these files into one module (script.py).

import { domainShares, drawActions, drawExperts, headsFor } from "./experts.js";
import { drawLoads, drawPath, drawStrip, layStrip, scrollTo } from "./layers.js";
import { listen } from "./listening.js";
import { drawPills, keepKeys, layPage } from "./page.js";
import { nearestRouter } from "./reading.js";
import { inWords, readings, sides, titleOf } from "./sides.js";
import { drawBanner } from "./steering.js";
import { drawTokens, layTokens } from "./tokens.js";

const COMPARISONS = [["off", "nothing"], ["text", "another text"], ["layer", "another layer"],
  ["model", "another model"]];
const SCOPES = [["layer", "this layer", "scores and loads of this layer"],
  ["all", "all layers", "the way of a token through all layers, and the load of each"]];

function drawControls(parts, model, show) {
  const [mode, live, full] = ["compare", "live", "full"].map((name) => model.get(name));
  const samples = model.get("examples").map(([label, text]) => [text, label, text]);
  const models = model.get("models").map((name) => [name, name]);
  const comparisons = COMPARISONS.filter(([name]) => name !== "model" || models.length > 1);
  drawPills(parts.examples, samples, model.get("text"), (text) => show({ text }));
  drawPills(parts.models, models, model.get("model"), (name) => show({ model: name }));
  drawPills(parts.scope, SCOPES, model.get("scope"), (scope) => show({ scope }));
  drawPills(parts.compare, comparisons, mode, (compare) => show({ compare }));
  drawPills(parts.otherExamples, samples, model.get("other_text"), (text) => show({ other_text: text }));
  drawPills(parts.otherModels, models, model.get("other_model"), (name) => show({ other_model: name }));
  parts.examplesRow.hidden = !samples.length;
  parts.modelsRow.hidden = models.length < 2;
  parts.compareRow.hidden = parts.scope.hidden = !full;
  parts.otherTextRow.hidden = mode !== "text";
  parts.otherExamplesRow.hidden = mode !== "text" || !samples.length;
  parts.otherModelsRow.hidden = mode !== "model";
  parts.otherLayerRow.hidden = !["layer", "model"].includes(mode);
  for (const [box, name] of [[parts.text, "text"], [parts.otherText, "other_text"]]) {
    if (box.getRootNode().activeElement !== box) box.value = model.get(name);
    box.rows = Math.min(Math.max(box.value.split("\n").length, 2), 6);
    box.readOnly = !live;
    box.title = live ? "" : "To type a text of your own, run this notebook.";
  }
}

function drawMessages(parts, model) {
  for (const name of ["message", "other_message", "steer_message"]) {
    const part = parts[name.replace(/_m/, "M")];
    if (part.textContent !== model.get(name)) part.textContent = model.get(name); // read aloud once
  }
}

function drawLayerOf(slider, output, { s, layer }) {
  slider.max = s.layers - 1;
  slider.value = layer;
  output.textContent = `${layer}${s.dense(layer) ? ", dense" : ""}`;
}

function drawBoxes(parts, model, world, colour) {
  const { a, b } = world;
  drawTokens(parts.tokensA, a, colour);
  for (const part of [parts.titleA, parts.titleB, parts.tokensB, parts.agreement]) part.hidden = !b;
  if (!b) return;
  parts.titleA.innerHTML = titleOf(a, model, "A", world);
  parts.titleB.innerHTML = titleOf(b, model, "B", world);
  drawTokens(parts.tokensB, b, colour);
  parts.agreement.innerHTML = inWords(world);
}

function drawPanels(parts, model, world, colour) {
  const { a, b, picked } = world;
  const [shades, edits, full] = [model.get("shades"), model.get("edits"), model.get("full")];
  const all = full && model.get("scope") === "all";
  const shown = [[parts.one, !all], [parts.two, !all && b], [parts.through, all], [parts.loads, all]];
  shown.forEach(([part, on]) => { part.hidden = !on; });
  parts.panels.classList.toggle("ml4-all", Boolean(all || b));
  drawStrip(parts, a);
  if (all) {
    drawPath(parts, a, colour);
    drawLoads(parts, a, shades);
    return;
  }
  const focus = parts.experts.getRootNode().activeElement;
  const held = parts.experts.contains(focus) ? focus.dataset.expert : null;
  const domains = full && !a.s.dense(a.layer)
    ? domainShares(model.get("loads")[a.s.model], a.s.moe, a.layer) : [];
  const common = { colour, shades, heads: headsFor(domains) };
  drawExperts(parts.about, parts.experts, a,
    { ...common, edits, picked, domains, counted: model.get("counted"), canPick: full, name: b ? "A. " : "" });
  parts.actions.hidden = !full;
  drawActions(parts.actions, a, picked, edits, colour);
  if (b) drawExperts(parts.aboutB, parts.expertsB, b, { ...common, name: "B. " });
  if (held !== null) parts.experts.querySelector(`[data-expert="${held}"]`)?.focus();
}

// How much of the view a change concerns; each level draws the ones below it too.
const PAINT = 1; // colours, scores, the frame around a token
const CONTROLS = 2; // pills, text boxes, the list of edits, messages
const READINGS = 3; // what Python has sent
const CHANGES = {
  [PAINT]: ["token", "other_token", "layer", "other_layer"],
  [CONTROLS]: ["text", "other_text", "model", "other_model", "scope", "loads", "edits",
    "message", "other_message", "steer_message"],
  [READINGS]: ["state", "steered", "other", "compare"],
};

function render({ model, el }) {
  const [parts, palette] = [layPage(el), model.get("palette")];
  const colour = (e) => palette[e % palette.length];
  let [read, over, picked, due] = [null, null, null, 0];

  const show = (changes) => {
    Object.entries(changes).forEach(([name, value]) => model.set(name, value));
    model.save_changes();
  };
  const now = () => ({ ...sides(model, read, over), picked });
  const paint = () => {
    const world = now();
    drawLayerOf(parts.layer, parts.whichLayer, world.a);
    if (world.b) drawLayerOf(parts.otherLayer, parts.whichOtherLayer, world.b);
    drawBoxes(parts, model, world, colour);
    drawPanels(parts, model, world, colour);
    if (over === null) scrollTo(parts, world.a.token);
  };
  const lay = () => {
    const before = read;
    [read, over] = [readings(model), null];
    layTokens(parts.tokensA, read.s);
    if (read.other) layTokens(parts.tokensB, read.other);
    layStrip(parts, read.s, read.steered ? read.base : null, colour);
    if (before && before.base.model !== read.base.model) picked = null;
    if (before) follow(before, read, model, show);
  };
  const draw = () => {
    const level = due;
    due = 0;
    if (level >= READINGS) lay();
    if (level >= CONTROLS) {
      drawControls(parts, model, show);
      drawMessages(parts, model);
      drawBanner(parts, model.get("edits"), read.base, read.steered);
    }
    paint();
  };
  const ask = (level) => { // changes come in groups: draw once, when all of a group are there
    if (!due) queueMicrotask(draw);
    due = Math.max(due, level);
  };
  const hover = (side, t) => {
    if (t === (over?.side === side ? over.t : null)) return;
    over = t === null ? null : { side, t };
    ask(PAINT);
  };
  const pick = (expert) => { picked = picked === expert ? null : expert; ask(PAINT); };

  keepKeys(el);
  listen(parts, { model, now, show, hover, pick });
  const heard = Object.entries(CHANGES).flatMap(([level, names]) =>
    names.map((name) => [`change:${name}`, () => ask(+level)]));
  heard.push(["change:layer", () => { picked = null; }]);
  heard.forEach(([name, call]) => model.on(name, call));
  due = READINGS;
  draw();
  requestAnimationFrame(() => ask(PAINT)); // once it has a width, the strip can scroll to its token
  return () => heard.forEach(([name, call]) => model.off(name, call));
}

/** After a new reading: another model may be dense where the last one was not; and token B goes
    where token A is. */
function follow(before, read, model, show) {
  for (const [side, layer] of [["base", "layer"], ["other", "other_layer"]]) {
    const [s, at] = [read[side], model.get(layer)];
    const fresh = s && s.model !== before[side]?.model && (side === "base" || read.mode === "model");
    if (fresh && s.dense(at)) show({ [layer]: nearestRouter(s, at) });
  }
  const partner = read.match[model.get("token")];
  if (read.texts && read.other.text !== before.other?.text && partner >= 0) show({ other_token: partner });
}

export default { render };
