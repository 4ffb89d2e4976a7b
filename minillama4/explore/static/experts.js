// The experts of one layer: their scores for the token in hand, and the tokens they were given.

import { isOff } from "./steering.js";
import { escape, percent, quoted } from "./page.js";

const PER_ROW = 16; // with more experts than colours: a grid of positions, this many to a row

const DENSE = `<p class="ml4-note">It has no router and no experts to choose from: one SwiGLU reads
  every token. The coloured rows are the layers with experts.</p>`;

/** Shares of each domain's tokens by expert: [[label, tokens, shares]], empty if none are known. */
export function domainShares(loads, moe, layer) {
  const at = moe.indexOf(layer);
  return Object.entries(loads ?? {}).map(([name, counts]) => {
    const label = escape(name);
    const total = counts[at].reduce((a, b) => a + b, 0);
    return [label, total, counts[at].map((n) => n / total)];
  });
}

/** How high the heads of the columns are: the domains' names stand on end. */
export const headsFor = (domains) =>
  Math.max(20, ...domains.map(([label]) => 12 + 6.2 * label.length));

const bar = (share, colour) => `<span class="ml4-track"><i
  style="width:${(100 * share).toFixed(1)}%;background:${colour}"></i></span>`;

const heat = (share, most) =>
  `background:color-mix(in srgb, currentColor ${Math.round((38 * share) / most)}%, transparent)`;

function domainCells(domains, e, most) {
  return domains.map(([label, total, shares]) => {
    const whole = Math.round(100 * shares[e]);
    const title = `${label}: ${percent(shares[e])} of ${total} tokens go to expert ${e}`;
    return `<span class="ml4-share" style="${heat(shares[e], most)}" title="${title}">${whole || "·"}</span>`;
  }).join("");
}

function barRows(view, colour) {
  const { scores, load, chosen, domains, off, picked, canPick } = view;
  const busiest = Math.max(...load, 1);
  const most = Math.max(...domains.flatMap(([, , shares]) => shares), 0.01);
  const row = (score, e) => {
    const names = ["ml4-row", chosen.includes(e) && "ml4-top", off(e) && "ml4-off", e === picked && "ml4-picked"];
    const role = canPick ? `role="button" tabindex="0" aria-pressed="${e === picked}"` : "";
    return `<div class="${names.filter(Boolean).join(" ")}" data-expert="${e}" ${role}
        aria-label="expert ${e}, g ${score.toFixed(2)}, ${load[e]} tokens">
      <span class="ml4-mark">${chosen.includes(e) ? "▸" : ""}</span>
      <b class="ml4-number" style="background:${colour(e)}">${e}</b>
      ${bar(score, colour(e))}<span class="ml4-score">${off(e) ? "off" : score.toFixed(2)}</span>
      ${bar(load[e] / busiest, colour(e))}<span class="ml4-load">${load[e]}</span>
      ${domainCells(domains, e, most)}</div>`;
  };
  const heads = domains.map(([label, total]) =>
    `<span class="ml4-domain" title="${label}: ${total} tokens"><span>${label}</span></span>`);
  return `<div class="ml4-row ml4-head"><span></span><span></span><span>g = σ(score)</span><span></span>
    <span class="ml4-over">tokens of this text</span><span></span>${heads.join("")}</div>
    ${scores.map(row).join("")}
    ${heads.length ? `<p class="ml4-note ml4-below">Right: of each domain's tokens in ${escape(view.counted)},
      the share in % that each expert gets.</p>` : ""}`;
}

function positionGrid(view, values, most, words, small = false) {
  const { chosen, off, picked, canPick, shades } = view;
  const cells = values.map((value, e) => {
    const step = Math.min(Math.round((value / most) * (shades.length - 1)), shades.length - 1);
    const ink = step < shades.length / 2 ? "#ffffff" : "#111111";
    const names = ["ml4-spot", chosen.includes(e) && "ml4-top", off(e) && "ml4-off", e === picked && !small && "ml4-picked"];
    const role = canPick && !small ? `role="button" tabindex="0"` : "";
    return `<b class="${names.filter(Boolean).join(" ")}" data-expert="${e}" ${role}
      title="expert ${e}: ${words(value)}" style="background:${shades[step]};color:${ink}">${small ? "" : e}</b>`;
  });
  return `<div class="ml4-spots${small ? " ml4-small" : ""}">${cells.join("")}</div>`;
}

function grids(view) {
  const { scores, load, domains } = view;
  const busiest = Math.max(...load, 1);
  const most = Math.max(...domains.flatMap(([, , shares]) => shares), 0.01);
  const small = domains.map(([label, total, shares]) => `<div><span title="${total} tokens">${label}</span>
    ${positionGrid(view, shares, most, (v) => `${percent(v)} of ${label}`, true)}</div>`);
  const known = domains.length ? `<p class="ml4-note">Share of each domain's tokens in ${escape(view.counted)}, from 0 (dark) to ${percent(most)} (light)</p><div class="ml4-domains">${small.join("")}</div>` : "";
  return `<p class="ml4-note">g = σ(score), from 0 (dark) to 1 (light)</p>
    ${positionGrid(view, scores, 1, (v) => `g = ${v.toFixed(2)}`)}
    <p class="ml4-note">Tokens of this text, from 0 (dark) to ${busiest} (light)</p>
    ${positionGrid(view, load, busiest, (v) => `${v} tokens`)}${known}`;
}

/** about, place: where the title and the table go. side: { s, layer, shown }. */
export function drawExperts(about, place, side, options) {
  const { s, layer, shown } = side;
  const { colour, domains = [], name = "" } = options;
  if (s.dense(layer)) {
    about.textContent = `${name}Layer ${layer} is dense`;
    place.innerHTML = DENSE;
    return;
  }
  const [scores, load, chosen] = [s.score(layer, shown), s.load(layer), s.choice(layer, shown)];
  const top = chosen.map((e) => `expert ${e} (g = ${scores[e].toFixed(2)})`).join(" and ");
  about.innerHTML = `${name}Layer ${layer} sends ${quoted(s.pieces[shown])} to ${top}`;
  const off = (e) => isOff(options.edits ?? [], layer, e);
  const view = { picked: null, canPick: false, ...options, scores, load, chosen, domains, off };
  place.style.setProperty("--ml4-domains", domains.length);
  place.style.setProperty("--ml4-cells", domains.length ? `repeat(${domains.length}, 26px)` : "");
  place.style.setProperty("--ml4-heads", `${options.heads ?? 20}px`);
  place.innerHTML = s.experts <= PER_ROW ? barRows(view, colour) : grids(view);
}

/** What can be done with the expert that was picked, for the token in hand or for all. */
export function drawActions(place, { s, layer, token }, picked, edits, colour) {
  if (s.dense(layer)) return (place.innerHTML = "");
  if (picked === null) {
    place.innerHTML = `<span class="ml4-note">Click an expert to switch it off or to force it.</span>`;
    return;
  }
  const act = (name, label) => `<button type="button" class="ml4-pill" data-act="${name}">${label}</button>`;
  place.innerHTML = `<b class="ml4-number" style="background:${colour(picked)}">${picked}</b>
    ${act("off", isOff(edits, layer, picked) ? "Switch on" : "Switch off")}
    ${act("token", `Force for ${quoted(s.pieces[token])}`)}${act("all", "Force for all")}`;
}
