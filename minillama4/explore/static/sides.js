// What is to be drawn: side a, and side b where two layers, models or texts are compared.

import { agreement, align, byName, companions, overlap } from "./comparing.js";
import { unpack } from "./reading.js";
import { escape, minus, percent, quoted } from "./page.js";
import { lossChange } from "./steering.js";

const within = (t, s) => Math.min(Math.max(t, 0), s.pieces.length - 1);

/** The readings, unpacked; made anew only when Python (or the page's store) has sent some. */
export function readings(model) {
  const base = unpack(model.get("state"));
  const [after, mode] = [model.get("steered"), model.get("compare")];
  const fits = after.pieces && after.text === base.text && after.model === base.model;
  const [steered, sent] = [fits ? unpack(after) : null, model.get("other")];
  const s = steered ?? base;
  const other = mode === "layer" ? s : sent.pieces && mode !== "off" ? unpack(sent) : null;
  const texts = mode === "text" && other !== null;
  const match = texts ? align(s.pieces, other.pieces) : s.pieces.map((_, t) => t);
  const changes = steered ? lossChange(base, steered) : [];
  const change = changes.some((x) => x) ? changes : null;
  return { base, steered, s, other, mode, texts, match, change };
}

/** over: { side, t } under the mouse, or null. */
export function sides(model, read, over) {
  const { base, steered, s, other, mode, texts, match, change } = read;
  const layer = Math.min(model.get("layer"), s.layers - 1);
  const token = within(model.get("token"), s);
  const before = steered ? base : null;
  const a = { s, layer, token, shown: token, before, change };
  let b = null;
  if (other) {
    const otherLayer = texts ? layer : Math.min(model.get("other_layer"), other.layers - 1);
    const otherToken = texts ? within(model.get("other_token"), other) : token;
    b = { s: other, layer: otherLayer, token: otherToken, shown: otherToken };
  }
  if (over) {
    const partner = over.side === "a" ? match[over.t] : match.indexOf(over.t);
    const [here, there] = over.side === "a" ? [a, b] : [b, a];
    if (here) here.shown = within(over.t, here.s);
    if (there && partner >= 0) there.shown = within(partner, there.s);
  }
  const kin = model.get("same_run") || other?.model === s.model;
  const named = texts || (mode === "model" && kin && b?.layer === layer);
  const world = { a, b, mode, texts, match, named };
  if (b && !s.dense(layer) && !other.dense(b.layer)) mark(world);
  return world;
}

function mark(world) {
  const { a, b, match, named } = world;
  const [x, y] = [a.s.first(a.layer), b.s.first(b.layer)];
  const found = named ? byName(x, y, match) : companions(x, y, a.shown);
  [a.marks, b.marks, world.found] = [found.a, found.b, found];
}

export function titleOf(side, model, letter, world) {
  const where = world.mode === "model" ? `${escape(side.s.model)}, layer ${side.layer}` : `layer ${side.layer}`;
  return `<b class="ml4-letter">${letter}</b> ${where}`;
}

/** How well both sides agree, in words that hold for what is compared. */
export function inWords(world) {
  const { a, b, found, named, texts } = world;
  if (!found) return "One of the two layers is dense: it has no experts to compare.";
  return named ? namedWords(a, b, found, texts) : groupedWords(a, b, found);
}

function namedWords(a, b, { same, count }, texts) {
  const share = count ? ` (${percent(same / count)})` : "";
  const both = overlap(a.s.load(a.layer), b.s.load(b.layer));
  const tokens = texts ? "tokens that stand in both texts, in the same order," : "tokens";
  const pale = texts ? ", tokens of one text alone are pale" : "";
  return `<b>${same} of ${count}</b> ${tokens} go to the same expert in A and B${share}.
    The loads of the two overlap by ${percent(both)}.
    <span class="ml4-legend"><u class="ml4-apart"></u> another expert${pale}.</span>`;
}

function groupedWords(a, b, found) {
  const { rand, both, first, chance } = agreement(a.s.first(a.layer), b.s.first(b.layer));
  const share = first ? percent(both / first) : "none";
  const why = a.layer === b.layer ? "two models that were trained apart" : "two layers";
  return `<b>Adjusted Rand index ${minus(rand.toFixed(2))}</b>: 1 if the same tokens stay together in A and B,
    about 0 by chance. Of ${first} pairs of tokens that share an expert in A, ${share} share one in B
    too; by chance ${percent(chance)}. The experts' numbers do not count: in ${why}, expert 3 and
    expert 3 have only the number in common.
    <span class="ml4-legend">${quoted(a.s.pieces[a.shown])} shares its expert with ${found.inA} tokens in A
    and ${found.inB} in B, ${found.shared} of them the same: <u class="ml4-together"></u> in both,
    <u class="ml4-apart"></u> on one side.</span>`;
}
