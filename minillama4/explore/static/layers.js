// All layers at once: the strip, the way of one token, and the load of every layer.

import { effectiveExperts } from "./reading.js";
import { escape, quoted } from "./page.js";

const CELL = { w: 22, h: 19 }; // of the strip, in pixels

const short = (piece) => (piece.length > 10 ? `${piece.slice(0, 9)}…` : piece);

/** How high the names of the tokens stand above the strip, on end. */
const above = (s) => 16 + 6.7 * Math.max(...s.pieces.map((piece) => short(piece).length));

function sizeTo(svg, width, height) {
  // as style, not attributes: pages that carry notebooks say "svg { max-width: 100%; height: auto }"
  Object.assign(svg.style, { width: `${width}px`, height: `${height}px`, maxWidth: "none" });
}

function cell(s, before, layer, t, top, colour) {
  const [{ w, h }, chosen] = [CELL, s.choice(layer, t)[0]];
  const [x, y] = [t * w, top + layer * h];
  const changed = before && before.choice(layer, t)[0] !== chosen;
  const corner = `<path class="ml4-corner" d="M${x + w - 7} ${y + 1}h6v6z"/>`;
  return `<rect x="${x + 0.5}" y="${y + 0.5}" width="${w - 1}" height="${h - 1}" fill="${colour(chosen)}"/>
    <text x="${x + w / 2}" y="${y + h / 2 + 4}">${chosen}</text>${changed ? corner : ""}`;
}

/** before: the reading without edits, if there are any; cells that differ get a dark corner. */
export function layStrip(parts, s, before, colour) {
  const [{ w, h }, top, wide] = [CELL, above(s), s.moe.length < s.layers ? 58 : 22];
  const all = Array.from({ length: s.layers }, (_, layer) => layer);
  const heads = s.pieces.map((piece, t) => `<text class="ml4-piece"
    transform="translate(${t * w + w / 2 + 4} ${top - 6}) rotate(-90)">${escape(short(piece))}</text>`);
  const none = (layer) => `<rect class="ml4-none" x="0.5" y="${top + layer * h + 0.5}"
    width="${s.pieces.length * w - 1}" height="${h - 1}"/>`;
  const lines = all.flatMap((layer) =>
    s.dense(layer) ? none(layer) : s.pieces.map((_, t) => cell(s, before, layer, t, top, colour)));
  const frames = `<rect class="ml4-frame ml4-column"/><rect class="ml4-frame ml4-now"/>`;
  parts.strip.innerHTML = heads.join("") + lines.join("") + frames;
  sizeTo(parts.strip, s.pieces.length * w + 2, top + s.layers * h + 2);
  parts.names.innerHTML = all.map((layer) => `<text class="ml4-line" x="${wide - 6}"
    y="${top + layer * h + h / 2 + 4}">${s.dense(layer) ? "dense " : ""}${layer}</text>`).join("");
  sizeTo(parts.names, wide, top + s.layers * h + 2); // the names stay when the strip scrolls
  const size = `${s.pieces.length} tokens in ${s.layers} layers`;
  parts.strip.setAttribute("aria-label", `the chosen expert of ${size}`);
}

export function drawStrip(parts, { s, layer, shown }) {
  const [{ w, h }, top] = [CELL, above(s)];
  const place = (name, box) => {
    const frame = parts.strip.querySelector(name);
    Object.entries(box).forEach(([key, value]) => frame.setAttribute(key, value));
  };
  place(".ml4-now", { x: 0, y: top + layer * h, width: s.pieces.length * w, height: h });
  place(".ml4-column", { x: shown * w, y: top, width: w, height: s.layers * h });
  const mark = (svg, name, at) => svg.querySelectorAll(name)
    .forEach((text, i) => text.classList.toggle("ml4-shown", i === at));
  mark(parts.strip, ".ml4-piece", shown);
  mark(parts.names, ".ml4-line", layer);
}

export function scrollTo(parts, token) {
  const [x, view] = [token * CELL.w, parts.scroll];
  const hidden = x < view.scrollLeft || x + CELL.w > view.scrollLeft + view.clientWidth;
  if (hidden) view.scrollLeft = x - view.clientWidth / 2;
}

/** The token and layer under the mouse, or null beside them; a layer below 0 is the names. */
export function cellAt(parts, s, event) {
  const box = parts.strip.getBoundingClientRect();
  const t = Math.floor((event.clientX - box.left) / CELL.w);
  const layer = Math.floor((event.clientY - box.top - above(s)) / CELL.h);
  return s.pieces[t] === undefined || layer >= s.layers ? null : { t, layer };
}

// ------------------------------------------------------------------ the view of all layers
/** One token on its way through the layers: whom each asked, and how sure it was. */
export function drawPath(parts, { s, layer, shown }, colour) {
  parts.aboutThrough.innerHTML = `${quoted(s.pieces[shown])} in every layer`;
  const row = (at) => {
    const frame = `class="ml4-step${at === layer ? " ml4-picked" : ""}" data-layer="${at}"`;
    if (s.dense(at)) return `<div ${frame}><span>${at}</span><span class="ml4-note">dense</span></div>`;
    const [e, scores] = [s.choice(at, shown)[0], s.score(at, shown)];
    return `<div ${frame}><span>${at}</span><b class="ml4-number" style="background:${colour(e)}">${e}</b>
      <span class="ml4-track"><i style="width:${(100 * scores[e]).toFixed(1)}%;background:${colour(e)}"></i></span>
      <span class="ml4-score">${scores[e].toFixed(2)}</span></div>`;
  };
  const rows = Array.from({ length: s.layers }, (_, at) => row(at));
  parts.path.innerHTML = `<div class="ml4-step ml4-head"><span>layer</span><span></span>
    <span>g of the expert it asked</span><span></span></div>${rows.join("")}`;
}

export function drawLoads(parts, { s, layer }, shades) {
  const [most, wide] = [Math.max(1, ...s.moe.flatMap(s.load)), Math.max(5, Math.min(22, Math.floor(400 / s.experts)))];
  const spot = (n, e) => {
    const step = Math.round((n / most) * (shades.length - 1));
    const ink = step < shades.length / 2 ? "#ffffff" : "#111111";
    return `<b class="ml4-spot" title="expert ${e}: ${n} tokens"
      style="background:${shades[step]};color:${ink}">${wide >= 18 && n ? n : ""}</b>`;
  };
  const columns = `grid-template-columns:56px repeat(${s.experts},${wide}px) 56px`;
  const row = (at) => {
    const load = s.load(at);
    return `<div class="ml4-line-of${at === layer ? " ml4-picked" : ""}" style="${columns}" data-layer="${at}">
      <span>${at}</span>${load.map(spot).join("")}<span>${effectiveExperts(load).toFixed(1)}</span></div>`;
  };
  const numbers = Array.from({ length: s.experts }, (_, e) => `<span>${wide >= 12 || e % 8 === 0 ? e : ""}</span>`);
  parts.matrix.innerHTML = `<div class="ml4-line-of ml4-head" style="${columns}"><span>layer</span>
    ${numbers.join("")}<span title="exp of the load's entropy">effective</span></div>${s.moe.map(row).join("")}
    <p class="ml4-note">0 (dark) to ${most} (light) tokens. Right: the effective number of experts,
    so many evenly used ones would have the same entropy.</p>`;
}
