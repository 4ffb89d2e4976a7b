// The chunk explorer: rows of tokens, the input below and a layer above the other; one token in
// hand, and all that it reaches, or draws from, lit. All of it is answered here, without Python.

import { drawPills, keepKeys } from "../page.js";
import { everyLayer, heldKeys, inside, isNope, litStretches, reachInWords, seenBefore } from "./masks.js";
import { drawMask, marked } from "./mask_view.js";
import { drawKnobs, follow, knobRows, listenToKnobs, setter } from "./knobs.js";

const KNOBS = ["length", "chunk", "layers", "nope_every", "window", "token", "layer", "way"];
const [LEFT, TOP, HIGH, GAP, COLUMN] = [108, 22, 17, 7, 40]; // of the rows, in pixels

const WAYS = [["reach", "what it reaches", "whom the token can influence, upwards from the input"],
  ["draws", "what it draws from", "what the token's last state can depend on, down to the input"]];
const KINDS = [[false, "chunks", "Llama 4: a token sees its own chunk"],
  [true, "sliding window", "not Llama 4: a token sees the last tokens, as many as a chunk has"]];

const knobsOf = (limits) => {
  const of = (name, label, say) => ({ name, label, say, min: limits[name][0], max: limits[name][1] });
  return [of("length", "Length", (n) => `${n} tokens`), of("chunk", "Chunk", (n) => `${n} tokens`),
    of("layers", "Layers"), of("nope_every", "NoPE", (n) => (n ? (n === 1 ? "every layer" : `every ${n} layers`) : "none"))];
};

const pillRow = (name, label) => `<div class="ml4-field"><span>${label}</span>
  <div class="ml4-pills ml4-${name}" role="group" aria-label="${label}"></div>`;

const pageOf = (knobs) => `<div class="ml4-routing ml4-irope ml4-chunked">${knobRows(knobs)}
  ${pillRow("kind", "RoPE sees")}</div>
  ${pillRow("way", "Token")}<span class="ml4-hint">click a cell; ← → token, ↑ ↓ layer</span></div>
  <p class="ml4-said" role="status" aria-live="polite"></p>
  <div class="ml4-panels"><section><h4 class="ml4-about-rows"></h4>
    <div class="ml4-rows" role="slider" tabindex="0"><svg></svg></div>
    <p class="ml4-note">lit: tokens lit in this row (● newly); sees: tokens that the one in hand sees
      there directly, itself included; keys: those the layer holds at most.</p></section>
  <section class="ml4-masked"><h4 class="ml4-about-mask"></h4><svg class="ml4-mask" role="img"></svg></section></div></div>`;

const cellOf = ({ length }) => Math.min(20, Math.max(6, Math.floor(520 / length)));

const boxes = (from, to, cell, y) => {
  let path = "";
  for (let t = from; t <= to; t++) path += `M${LEFT + t * cell + 0.5} ${y}h${cell - 1}v${HIGH}h${1 - cell}z`;
  return path;
};

/** One row: level 0 is the input, level l what has come out of layer l - 1. */
function rowOf(knobs, level, stretches, colours) {
  const { length, chunk, layers, token, layer, way, window } = knobs;
  const [cell, y, at] = [cellOf(knobs), TOP + (layers - level) * (HIGH + GAP), level - 1];
  const [nope, [from, to]] = [level > 0 && isNope(knobs, at), stretches[level]];
  const kind = level === 0 ? "input" : nope ? "nope" : "rope";
  const [a, z] = stretches[way === "reach" ? Math.max(level - 1, 0) : Math.min(level + 1, layers)];
  let [fresh, borders] = ["", ""];
  for (let t = from; t <= to; t++) {
    if (t < a || t > z) fresh += `<circle cx="${LEFT + (t + 0.5) * cell}" cy="${y + HIGH / 2}" r="2"/>`;
  }
  for (let t = chunk; kind === "rope" && !window && t < length; t += chunk) borders += `M${LEFT + t * cell} ${y - 3}v${HIGH + 6}`;
  const end = LEFT + length * cell;
  const columns = [to - from + 1, ...(level ? [seenBefore(knobs, at, token) + 1, heldKeys(knobs, at)] : [])];
  const numbers = columns.map((n, i) => `<text class="ml4-line" x="${end + (i + 1) * COLUMN}" y="${y + 13}">${n}</text>`);
  const held = level && at === layer;
  return `<g data-level="${level}" data-lit="${from} ${to}"><text class="ml4-line${held ? " ml4-shown" : ""}"
      x="${LEFT - 8}" y="${y + 13}">${held ? "▸ " : ""}${level ? `layer ${at} ${nope ? "NoPE" : "RoPE"}` : "input"}</text>
    <path class="ml4-none" d="${boxes(0, length - 1, cell, y)}"/>
    <path fill="${colours[kind]}" d="${boxes(from, to, cell, y)}"/><g class="ml4-fresh">${fresh}</g>
    <path class="ml4-border" d="${borders}"/>${numbers.join("")}</g>`;
}

function drawRows(part, knobs, colours) {
  const { length, layers, token, layer, way } = knobs;
  const [svg, cell, stretches] = [part.querySelector("svg"), cellOf(knobs), litStretches(knobs)];
  const levels = Array.from({ length: layers + 1 }, (_, level) => rowOf(knobs, level, stretches, colours));
  const y = (level) => TOP + (layers - level) * (HIGH + GAP);
  const heads = ["lit", "sees", "keys"].map((name, i) =>
    `<text class="ml4-line" x="${LEFT + length * cell + (i + 1) * COLUMN}" y="12">${name}</text>`);
  const numbers = marked(knobs, cell).map((t) =>
    `<text x="${LEFT + (t + 0.5) * cell}" y="${y(0) + HIGH + 15}">${t}</text>`);
  const frame = (level) => `<rect class="ml4-frame" x="${LEFT + token * cell}" y="${y(level)}" width="${cell}" height="${HIGH}"/>`;
  const size = { width: LEFT + length * cell + 3 * COLUMN + 4, height: y(0) + HIGH + 22 };
  Object.assign(svg.style, { width: `${size.width}px`, height: `${size.height}px`, maxWidth: "none" });
  svg.innerHTML = `${heads.join("")}${levels.join("")}${numbers.join("")}${frame(way === "reach" ? 0 : layers)}`;
  const [from, to] = stretches[layer + 1];
  const values = { min: 0, max: length - 1, now: token, text: `token ${token}; after layer ${layer}: ${from} to ${to} lit` };
  Object.entries(values).forEach(([name, value]) => part.setAttribute(`aria-value${name}`, value));
  part.setAttribute("aria-label", "token in hand");
}

/** The level and token under the mouse, or null. */
function cellUnder(svg, knobs, event) {
  const box = svg.getBoundingClientRect();
  const t = Math.floor((event.clientX - box.left - LEFT) / cellOf(knobs));
  const level = knobs.layers - Math.floor((event.clientY - box.top - TOP + GAP / 2) / (HIGH + GAP));
  const there = t < knobs.length && level >= 0 && level <= knobs.layers;
  return there ? { token: t, level } : null;
}

function listenToRows(part, now, show) {
  part.addEventListener("click", (event) => {
    const at = cellUnder(part.querySelector("svg"), now(), event);
    if (!at) return;
    part.focus();
    show({ ...(at.token >= 0 ? { token: at.token } : {}), ...(at.level ? { layer: at.level - 1 } : {}) });
  });
  part.addEventListener("keydown", (event) => {
    const { token, layer, length, layers } = now();
    const to = (t) => ({ token: Math.min(Math.max(t, 0), length - 1) });
    const level = (l) => ({ layer: Math.min(Math.max(l, 0), layers - 1) });
    const changes = {
      ArrowLeft: to(token - 1), ArrowRight: to(token + 1), Home: to(0), End: to(length - 1),
      ArrowUp: level(layer + 1), ArrowDown: level(layer - 1),
    }[event.key];
    if (!changes) return;
    event.preventDefault();
    show(changes);
  });
}

function render({ model, el }) {
  const [sliders, colours] = [knobsOf(model.get("limits")), model.get("colours")];
  const now = () => Object.fromEntries(KNOBS.map((name) => [name, model.get(name)]));
  const set = setter(model);
  const show = (changes) => set({ ...changes, ...inside({ ...now(), ...changes }) });
  el.innerHTML = pageOf(sliders);
  const part = (name) => el.querySelector(`.ml4-${name}`);
  const draw = () => {
    const knobs = { ...now(), ...inside(now()) };
    drawKnobs(el, sliders, knobs);
    drawPills(part("kind"), KINDS, knobs.window, (window) => show({ window }));
    drawPills(part("way"), WAYS, knobs.way, (way) => show({ way }));
    part("said").textContent = reachInWords(knobs);
    part("about-rows").textContent = knobs.way === "reach"
      ? `Whom token ${knobs.token} reaches, layer by layer` : `What token ${knobs.token} draws from, layer by layer`;
    drawRows(part("rows"), knobs, colours);
    drawMask(part("about-mask"), part("mask"), knobs, colours);
  };
  keepKeys(el);
  listenToKnobs(el, sliders, show);
  listenToRows(part("rows"), now, show);
  draw();
  return follow(model, KNOBS, draw);
}

export default { render };
