// The temperature explorer: s(p), what the relevant token gets, and how widely attention spreads,
// over the length of the context. All of it is answered here, without Python.

import { drawPills, keepKeys } from "../page.js";
import { chart, chartBox, lengthAt, shareOf, shareUnder, shortLength } from "./charts.js";
import { atLength, beyondTheMean, lengthsBetween, temperatureAt } from "./softening.js";
import { drawKnobs, follow, knobRows, listenToKnobs, setter } from "./knobs.js";

const TRAITS = ["floor_scale", "attn_scale", "length", "on", "advantage", "spread", "shortest", "longest", "measured"];
const SHARES = 400; // steps of the slider of lengths
const [DOTS, SIGNS] = [["round", "square"], ["●", "■"]]; // of the layers, in turn
const SWITCH = [[true, "on"], [false, "off"]];
const comma = (n) => n.toLocaleString("en-US");
const rate = (share) => `${(100 * share).toFixed(1)}%`;

const slidersOf = (span) => [
  { name: "length", label: "Length", min: 0, max: SHARES, say: (n) => `${comma(n)} tokens`,
    from: (n) => Math.round(SHARES * shareOf(n, span)), to: (x) => lengthAt(x / SHARES, span) },
  { name: "floor_scale", label: "Floor", min: 4, max: 17, say: (n) => `${comma(n)} tokens`,
    from: (n) => Math.round(Math.log2(n)), to: (x) => 2 ** x },
  { name: "attn_scale", label: "Scale", min: 0, max: 0.4, step: 0.01, say: (x) => x.toFixed(2) },
  { name: "advantage", label: "Advantage", min: 0, max: 20, step: 0.5, say: (x) => x.toFixed(1) },
  { name: "spread", label: "Spread", min: 0, max: 3, step: 0.1, say: (x) => x.toFixed(1) },
];

const pageOf = (sliders, measured) => `<div class="ml4-routing ml4-irope">${knobRows(sliders)}
  <div class="ml4-field"><span>Temperature</span><div class="ml4-pills ml4-on" role="group" aria-label="temperature"></div>
    <span class="ml4-hint">click into a chart to choose a length</span></div>
  <p class="ml4-said" role="status" aria-live="polite"></p><p class="ml4-note ml4-warn"></p>
  <p class="ml4-key"><span><u class="ml4-with"></u> with temperature</span><span><u class="ml4-without"></u> without</span>
    <span><u class="ml4-even"></u> ln n, if all got the same</span><span><u class="ml4-floor"></u> floor</span></p>
  <div class="ml4-panels ml4-charts">${chartBox("factor", "s, the factor on all scores of a query")}
    ${chartBox("weight", "Weight of the relevant token")}${chartBox("entropy", "Entropy of the row (nats)")}
    ${measured ? chartBox("measured", "Measured in a model: entropy (nats)") : ""}</div>
  <p class="ml4-note">One relevant token among n − 1 others. Advantage: its score above the mean of theirs; spread: the
    standard deviation of theirs; both before temperature.${measured ? " What is measured in a model stays as it is: only the length moves there." : ""}</p></div>`;

function sentence({ n, s, with: hot, without: plain }) {
  return `At ${comma(n)} tokens s = ${s.toFixed(4)}. The relevant token gets ${rate(hot.weight)} of the attention `
    + `with temperature, ${rate(plain.weight)} without. The entropy is ${hot.entropy.toFixed(2)} nats with it, `
    + `${plain.entropy.toFixed(2)} without, ${Math.log(n).toFixed(2)} if all got the same.`;
}

function drawCharts(part, knobs) {
  const { length, floor_scale: floor, attn_scale: scale, on, shortest, longest } = knobs;
  const [span, now] = [{ shortest, longest }, atLength(length, knobs)];
  const rows = lengthsBetween(shortest, longest, floor).map((n) => atLength(n, knobs));
  const marks = [{ n: floor, label: "", look: "ml4-floor" }, { n: length, label: shortLength(length), look: "ml4-here" }];
  const [strong, weak] = on ? ["", " ml4-resting"] : [" ml4-resting", ""];
  const pair = (hot, plain) => [
    { points: rows.map((row) => [row.n, plain(row)]), look: `ml4-without${weak}` },
    { points: rows.map((row) => [row.n, hot(row)]), look: `ml4-with${strong}` }];
  const spot = (hot, plain) => [{ n: length, y: on ? hot(now) : plain(now), look: on ? "ml4-with" : "ml4-without" }];
  const draw = (name, label, value, options) => {
    const [hot, plain] = [(row) => value(row, "with"), (row) => value(row, "without")];
    part(name).innerHTML = chart({ span, marks, lines: [...(options.also ?? []), ...pair(hot, plain)], spots: spot(hot, plain), ...options });
    part(name).setAttribute("aria-label", `${label} at ${length} tokens: ${hot(now).toFixed(4)} with temperature, ${plain(now).toFixed(4)} without`);
  };
  const top = temperatureAt(longest - 1, floor, scale);
  draw("factor", "s", (row, way) => (way === "with" ? row.s : 1), { least: 0.9, most: Math.max(1.3, top + 0.1), digits: 1 });
  draw("weight", "weight", (row, way) => row[way].weight, { most: 1, digits: 2 });
  const even = [{ points: rows.map(({ n }) => [n, Math.log(n)]), look: "ml4-even" }];
  draw("entropy", "entropy", (row, way) => row[way].entropy, { most: Math.log(longest) * 1.04, also: even });
}

/** Entropies of a real model: a pair of lines for each NoPE layer, named at their ends. */
function drawMeasured(svg, { positions, layers, floor_scale: floor }, length) {
  const counts = positions.map((p) => p + 1);
  const span = { shortest: Math.max(1, Math.min(...counts)), longest: Math.max(...counts) };
  const points = (nats) => nats.map((value, i) => [counts[i], value]);
  const lines = Object.entries(layers).flatMap(([layer, { with: hot, without: plain }], i) => [
    { points: points(plain), look: "ml4-without", dots: DOTS[i % 2] },
    { points: points(hot), look: "ml4-with", dots: DOTS[i % 2], label: `${SIGNS[i % 2]} layer ${layer}` }]);
  const even = { points: counts.map((n) => [n, Math.log(n)]), look: "ml4-even" };
  const most = Math.max(Math.log(span.longest), 1) * 1.04;
  const marks = [{ n: floor, label: "", look: "ml4-floor" }, { n: length, label: shortLength(length), look: "ml4-here" }];
  svg.innerHTML = chart({ span, most, lines: [even, ...lines], marks, room: 56 });
  svg.setAttribute("aria-label", `measured entropy of layers ${Object.keys(layers).join(", ")}`);
}

function render({ model, el }) {
  const span = { shortest: model.get("shortest"), longest: model.get("longest") };
  const [sliders, measured] = [slidersOf(span), model.get("measured")];
  const [now, show] = [() => Object.fromEntries(TRAITS.map((name) => [name, model.get(name)])), setter(model)];
  el.innerHTML = pageOf(sliders, measured.layers);
  const part = (name) => el.querySelector(`.ml4-${name}`);
  const draw = () => {
    const knobs = now();
    const at = atLength(knobs.length, knobs);
    drawKnobs(el, sliders, knobs);
    drawPills(part("on"), SWITCH, knobs.on, (on) => show({ on }));
    part("said").textContent = sentence(at);
    part("warn").textContent = beyondTheMean(at, knobs.spread)
      ? "So widely spread, the largest few of the others hold their weight: it is drawn roughly, and the entropy too low." : "";
    drawCharts(part, knobs);
    if (measured.layers) drawMeasured(part("measured"), measured, knobs.length);
  };
  keepKeys(el);
  listenToKnobs(el, sliders, show);
  for (const name of ["factor", "weight", "entropy"]) {
    const move = (event) => event.buttons && show({ length: lengthAt(shareUnder(part(name), event), span) });
    part(name).addEventListener("pointerdown", move);
    part(name).addEventListener("pointermove", move);
  }
  draw();
  return follow(model, TRAITS, draw);
}

export default { render };
