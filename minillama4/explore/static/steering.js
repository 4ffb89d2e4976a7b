// Experts switched off or forced: the list of such edits, and what they did to the loss.
//
// An edit is { layer, kind: "off" or "force", expert } and, if it holds for one token, its `token`.

import { quoted, signed } from "./page.js";

const scope = (edit) => edit.token ?? null;

export const isOff = (edits, layer, expert) =>
  edits.some((e) => e.kind === "off" && e.layer === layer && e.expert === expert);

/** The list with one edit more; switching off twice switches on, a force replaces its like. */
export function withEdit(edits, edit) {
  const like = (e) => e.layer === edit.layer && e.kind === edit.kind && scope(e) === scope(edit)
    && (edit.kind === "force" || e.expert === edit.expert);
  const rest = edits.filter((e) => !like(e));
  return edit.kind === "off" && rest.length < edits.length ? rest : [...rest, edit];
}

function named(edit, pieces) {
  const what = `layer ${edit.layer}: expert ${edit.expert} `;
  if (edit.kind === "off") return `${what}off`;
  return `${what}forced for ${scope(edit) === null ? "all tokens" : quoted(pieces[edit.token] ?? "")}`;
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/** By token: what the loss changed by, null for the first, which nothing predicts. */
export function lossChange(base, steered) {
  return base.pieces.map((_, t) => (t ? steered.loss[t - 1] - base.loss[t - 1] : null));
}

function moved(base, steered) {
  const layer = base.moe.find((at) => base.first(at).some((e, t) => e !== steered.first(at)[t]));
  if (layer === undefined) return null;
  const count = base.first(layer).filter((e, t) => e !== steered.first(layer)[t]).length;
  return `In layer ${layer}, ${count} of ${base.pieces.length} tokens got another expert.`;
}

function result(base, steered) {
  if (!base.loss.length) return "There is no token to predict: type a text.";
  const [before, after] = [mean(base.loss), mean(steered.loss)];
  const tallest = Math.max(...lossChange(base, steered).map((x) => Math.abs(x ?? 0)));
  const changed = moved(base, steered);
  const means = `Mean loss ${before.toFixed(3)} → ${after.toFixed(3)} nats per token
    (<b>${signed(after - before, 3)}</b>). ${changed ?? "No token changed its expert."}`;
  if (!tallest) return means;
  const later = steered.partial ? " What later layers then chose is not stored in this page." : "";
  return `${means}${later} <span class="ml4-legend">Under each token, by how many nats its own loss
    changed: <i class="ml4-worse"></i> worse, <i class="ml4-better"></i> better; the largest change is
    ${tallest.toFixed(2)}.</span>`;
}

export function drawBanner(parts, edits, base, steered) {
  parts.banner.hidden = !edits.length || !steered;
  if (parts.banner.hidden) return;
  const list = edits.map((edit) => `<b>${named(edit, base.pieces)}</b>`).join(" · ");
  const all = edits.length > 1 ? `<button type="button" class="ml4-pill" data-undo="all">Undo all</button>` : "";
  parts.banner.innerHTML = `<div class="ml4-edits"><span>${list}</span>
    <button type="button" class="ml4-pill" data-undo="last">Undo</button>${all}</div>
    <div>${result(base, steered)}</div>`;
}

const BARS = 26; // pixels for the tallest bar up and the tallest down together

/** What all bars under a text share: pixels per nat, and the room above and below their line. */
export function barScale(change) {
  const up = Math.max(0, ...change.map((x) => x ?? 0));
  const down = Math.max(0, ...change.map((x) => -(x ?? 0)));
  const perNat = BARS / (up + down);
  return { perNat, up: Math.ceil(up * perNat), down: Math.ceil(down * perNat), large: Math.max(up, down) / 2 };
}

/** A small bar under a token: up for worse, down for better. */
export function lossBar(change, { perNat, large }) {
  if (change === null) return "";
  const high = Math.round(Math.abs(change) * perNat);
  const bar = high ? `<i class="${change > 0 ? "ml4-worse" : "ml4-better"}" style="height:${high}px"></i>` : "";
  const [up, down] = change > 0 ? [bar, ""] : ["", bar];
  return `<span class="ml4-up">${up}</span><span class="ml4-down">${down}</span>
    <small class="${Math.abs(change) >= large ? "ml4-large" : ""}">${signed(change)}</small>`;
}
