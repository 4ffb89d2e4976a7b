// Who sees whom in one layer: a square of queries (down) and keys (to the right).

import { firstSeen, isNope } from "./masks.js";

const SIDE = 264; // of the square, in pixels
const EDGE = 22; // room for the numbers of positions

/** Positions at starts of chunks, as far as there is room for their numbers, `wide` pixels each. */
export function marked({ length, chunk }, cell, wide = 20) {
  const step = chunk * Math.max(1, Math.ceil(wide / (cell * chunk)));
  return Array.from({ length: Math.ceil(length / step) }, (_, i) => i * step);
}

export function drawMask(about, svg, knobs, colours) {
  const { length, layer, token, chunk } = knobs;
  const [cell, nope, first] = [SIDE / length, isNope(knobs, layer), firstSeen(knobs, layer, token)];
  const count = token - first;
  about.textContent = `Layer ${layer}, ${nope ? "NoPE" : "RoPE"}: token ${token} sees itself`
    + (count ? ` and ${count === 1 ? `token ${first}` : `${count} before it, from ${first} on`}` : " alone");
  const row = (t) => {
    const from = firstSeen(knobs, layer, t);
    return `M${from * cell} ${t * cell}h${(t - from + 1) * cell}v${cell}h${(from - t - 1) * cell}z`;
  };
  const rows = Array.from({ length }, (_, t) => row(t)).join("");
  const borders = nope || knobs.window ? [] : Array.from({ length: Math.floor((length - 1) / chunk) }, (_, i) => (i + 1) * chunk * cell);
  const lines = borders.map((x) => `M${x} 0V${SIDE}M0 ${x}H${SIDE}`).join("");
  const numbers = marked(knobs, cell).map((t) => `
    <text x="${(t + 0.5) * cell}" y="-6">${t}</text><text class="ml4-line" x="-5" y="${(t + 0.5) * cell + 4}">${t}</text>`);
  svg.setAttribute("viewBox", `${-EDGE - 14} ${-EDGE - 12} ${SIDE + EDGE + 18} ${SIDE + EDGE + 16}`);
  svg.setAttribute("aria-label", `mask of layer ${layer}: ${about.textContent}`);
  svg.innerHTML = `<text class="ml4-axis" x="${SIDE / 2}" y="-22">key</text>
    <text class="ml4-axis" transform="translate(-26 ${SIDE / 2}) rotate(-90)">query</text>
    <rect class="ml4-none" width="${SIDE}" height="${SIDE}"/>
    <path fill="${colours[nope ? "nope" : "rope"]}" d="${rows}"/><path class="ml4-border" d="${lines}"/>
    <rect class="ml4-frame" x="0" y="${token * cell}" width="${SIDE}" height="${cell}"/>
    <rect class="ml4-frame" x="${token * cell}" y="0" width="${cell}" height="${SIDE}"/>${numbers.join("")}`;
}
