// The routing view: which expert reads which token, and how sure the router was.
//
// One module, two hosts. In a notebook `model` is anywidget's: a text typed here goes to Python,
// which runs the Llama and sends back `state`. In an exported page `model` is a small stand-in
// (export.py) that knows the sample texts. Layer, token and hover are answered here, in both.

const PER_ROW = 16; // with more experts than colours: a grid of positions, this many to a row
const CELL = { w: 22, h: 19 }; // of the strip of all layers, in pixels
const TYPING_MS = 120; // a pause in typing this long sends the text

const numbers = (base64) =>
  new Uint16Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);

const make = (tag, name, props = {}) =>
  Object.assign(document.createElement(tag), { className: name }, props);

const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/** What Python sent, unpacked: scores are shares of 65535, one (token, expert) table per router. */
function unpack(state) {
  const { pieces, experts, top_k: k, moe } = state;
  const [scores, choices] = [numbers(state.scores), numbers(state.choice)];
  const row = (table, layer, t, width) => {
    const from = (moe.indexOf(layer) * pieces.length + t) * width;
    return moe.includes(layer) ? [...table.subarray(from, from + width)] : [];
  };
  const choice = (layer, t) => row(choices, layer, t, k);
  const score = (layer, t) => row(scores, layer, t, experts).map((s) => s / 65535);
  const load = (layer) => {
    const count = new Array(experts).fill(0);
    pieces.forEach((_, t) => choice(layer, t).forEach((e) => count[e]++));
    return count;
  };
  const names = pieces.map((piece) => (piece.length > 10 ? `${piece.slice(0, 9)}…` : piece));
  const top = 16 + 6.7 * Math.max(...names.map((name) => name.length)); // they stand on end there
  return { ...state, names, top, dense: (layer) => !moe.includes(layer), choice, score, load };
}

function skeleton(el) {
  el.innerHTML = `
    <div class="ml4-routing">
      <label class="ml4-field"><span>Text</span>
        <textarea class="ml4-text" rows="2" spellcheck="false"></textarea></label>
      <div class="ml4-field ml4-samples"><span>Samples</span>
        <div class="ml4-examples" role="group" aria-label="sample texts"></div></div>
      <label class="ml4-field"><span>Layer</span>
        <input class="ml4-layer" type="range" min="0" step="1"><output class="ml4-which"></output>
        <span class="ml4-hint">keys on a token: ← → token, ↑ ↓ layer</span></label>
      <p class="ml4-message" role="status" aria-live="polite"></p>
      <div class="ml4-tokens" role="listbox" aria-orientation="horizontal"></div>
      <div class="ml4-panels">
        <section><h4 class="ml4-about"></h4><div class="ml4-experts"></div></section>
        <section class="ml4-wide"><h4>All layers: the expert of each token</h4>
          <div class="ml4-map"><svg class="ml4-names" aria-hidden="true"></svg>
            <div class="ml4-scroll" tabindex="-1"><svg class="ml4-strip" role="img"></svg></div></div></section>
      </div>
    </div>`;
  const names = "text samples examples layer which message tokens about experts names scroll strip";
  return Object.fromEntries(names.split(" ").map((n) => [n, el.querySelector(`.ml4-${n}`)]));
}

// ------------------------------------------------------------------ the text, token by token
function layTokens(parts, s) {
  const chips = s.pieces.flatMap((piece, t) => {
    const chip = make("button", "ml4-token", { type: "button" });
    chip.setAttribute("role", "option");
    chip.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's opt-out of its own keys
    chip.dataset.token = t;
    chip.append(make("span", "", { textContent: piece }), make("sub", ""));
    return s.breaks.includes(t) ? [chip, make("span", "ml4-break")] : [chip];
  });
  parts.tokens.replaceChildren(...chips);
}

function spoken(s, layer, t) {
  const scores = s.score(layer, t);
  const named = s.choice(layer, t).map((e) => `expert ${e}, g ${scores[e].toFixed(2)}`);
  return `token ${t}, ${s.pieces[t]}: ${named.join(" and ") || "dense layer, no router"}`;
}

function drawTokens(parts, s, colour, { layer, token, shown }) {
  parts.tokens.setAttribute("aria-label", `tokens in the colour of their expert, layer ${layer}`);
  parts.tokens.querySelectorAll(".ml4-token").forEach((chip, t) => {
    const chosen = s.choice(layer, t);
    chip.style.backgroundColor = chosen.length ? colour(chosen[0]) : "";
    chip.lastChild.textContent = chosen.join("+");
    chip.classList.toggle("ml4-shown", t === shown);
    chip.classList.toggle("ml4-dense", !chosen.length);
    chip.setAttribute("aria-selected", t === token);
    chip.setAttribute("aria-label", spoken(s, layer, t));
    chip.tabIndex = t === token ? 0 : -1; // one stop for the tab key, arrows inside
  });
}

// ------------------------------------------------------------------ the experts, one by one
function barRows(scores, load, chosen, colour) {
  const most = Math.max(...load, 1);
  const bar = (share, e) => `<span class="ml4-track"><i
    style="width:${(100 * share).toFixed(1)}%;background:${colour(e)}"></i></span>`;
  const rows = scores.map((score, e) => `
    <div class="ml4-row${chosen.includes(e) ? " ml4-top" : ""}" data-expert="${e}">
      <span class="ml4-mark">${chosen.includes(e) ? "▸" : ""}</span>
      <b class="ml4-number" style="background:${colour(e)}">${e}</b>
      ${bar(score, e)}<span class="ml4-score">${score.toFixed(2)}</span>
      ${bar(load[e] / most, e)}<span class="ml4-load">${load[e]}</span>
    </div>`);
  return `<div class="ml4-row ml4-head"><span></span><span></span><span>g = σ(score)</span><span></span>
    <span>tokens of this text</span><span></span></div>${rows.join("")}`;
}

function positionGrid(values, chosen, shades, most, words) {
  const cells = values.map((value, e) => {
    const step = Math.round((value / most) * (shades.length - 1));
    const ink = step < shades.length / 2 ? "#ffffff" : "#111111";
    return `<b class="ml4-spot${chosen.includes(e) ? " ml4-top" : ""}" data-expert="${e}"
      title="expert ${e}: ${words(value)}" style="background:${shades[step]};color:${ink}">${e}</b>`;
  });
  return `<div class="ml4-spots" style="grid-template-columns:repeat(${PER_ROW},1fr)">
    ${cells.join("")}</div>`;
}

function drawExperts(parts, s, colour, shades, { layer, shown }) {
  const piece = escape(s.pieces[shown]);
  if (s.dense(layer)) {
    parts.about.textContent = `Layer ${layer} is dense`;
    parts.experts.innerHTML = `<p class="ml4-note">It has no router and no experts to choose from:
      one SwiGLU reads every token. The coloured rows are the layers with experts.</p>`;
    return;
  }
  const [scores, load, chosen] = [s.score(layer, shown), s.load(layer), s.choice(layer, shown)];
  const top = chosen.map((e) => `expert ${e} (g = ${scores[e].toFixed(2)})`).join(" and ");
  parts.about.innerHTML = `Layer ${layer} sends <q>${piece}</q> to ${top}`;
  const most = Math.max(...load, 1);
  parts.experts.innerHTML = s.experts <= PER_ROW ? barRows(scores, load, chosen, colour) : `
    <p class="ml4-note">g = σ(score), from 0 (dark) to 1 (light)</p>
    ${positionGrid(scores, chosen, shades, 1, (v) => `g = ${v.toFixed(2)}`)}
    <p class="ml4-note">Tokens of this text, from 0 (dark) to ${most} (light)</p>
    ${positionGrid(load, chosen, shades, most, (v) => `${v} tokens`)}`;
}

// ------------------------------------------------------------------ all layers at once
function sizeTo(svg, width, height) {
  // as style, not attributes: pages that carry notebooks say "svg { max-width: 100%; height: auto }"
  Object.assign(svg.style, { width: `${width}px`, height: `${height}px`, maxWidth: "none" });
}

function layStrip(parts, s, colour) {
  const [{ w, h }, top] = [CELL, s.top];
  const heads = s.names.map((name, t) => `<text class="ml4-piece"
    transform="translate(${t * w + w / 2 + 4} ${top - 6}) rotate(-90)">${escape(name)}</text>`);
  const cell = (layer, t) => {
    const [x, y, chosen] = [t * w, top + layer * h, s.choice(layer, t)];
    const box = `x="${x + 0.5}" y="${y + 0.5}" width="${w - 1}" height="${h - 1}"`;
    return `<rect ${box} fill="${colour(chosen[0])}"/>
      <text x="${x + w / 2}" y="${y + h / 2 + 4}">${chosen[0]}</text>`;
  };
  const none = (layer) => `<rect class="ml4-none" x="0.5" y="${top + layer * h + 0.5}"
    width="${s.pieces.length * w - 1}" height="${h - 1}"/>`;
  const all = Array.from({ length: s.layers }, (_, layer) => layer);
  const lines = all.flatMap((layer) =>
    s.dense(layer) ? none(layer) : s.pieces.map((_, t) => cell(layer, t)));
  const frames = `<rect class="ml4-frame ml4-column"/><rect class="ml4-frame ml4-now"/>`;
  parts.strip.innerHTML = heads.join("") + lines.join("") + frames;
  sizeTo(parts.strip, s.pieces.length * w + 2, top + s.layers * h + 2);
  const wide = s.moe.length < s.layers ? 58 : 22; // the names stay when the strip scrolls
  parts.names.innerHTML = all.map((layer) => `<text class="ml4-line" x="${wide - 6}"
    y="${top + layer * h + h / 2 + 4}">${s.dense(layer) ? "dense " : ""}${layer}</text>`).join("");
  sizeTo(parts.names, wide, top + s.layers * h + 2);
  const size = `${s.pieces.length} tokens in ${s.layers} layers`;
  parts.strip.setAttribute("aria-label", `the chosen expert of ${size}`);
}

function drawStrip(parts, s, { layer, shown }) {
  const [{ w, h }, top] = [CELL, s.top];
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

function scrollTo(parts, token) {
  const [x, view] = [token * CELL.w, parts.scroll];
  const hidden = x < view.scrollLeft || x + CELL.w > view.scrollLeft + view.clientWidth;
  if (hidden) view.scrollLeft = x - view.clientWidth / 2;
}

/** The token and layer under the mouse, or null over the labels. */
function cellAt(parts, s, event) {
  const box = parts.strip.getBoundingClientRect();
  const t = Math.floor((event.clientX - box.left) / CELL.w);
  const layer = Math.floor((event.clientY - box.top - s.top) / CELL.h);
  return s.pieces[t] === undefined || layer >= s.layers ? null : { t, layer };
}

// ------------------------------------------------------------------ what the reader does
function listen(parts, model, now, show, hover) {
  const chipOf = (event) => event.target.closest(".ml4-token");
  let typing;
  parts.text.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => show({ text: parts.text.value }), TYPING_MS);
  });
  parts.layer.addEventListener("input", () => show({ layer: +parts.layer.value }));
  parts.tokens.addEventListener("click", (e) => chipOf(e) && show({ token: +chipOf(e).dataset.token }));
  parts.tokens.addEventListener("mouseover", (e) => chipOf(e) && hover(+chipOf(e).dataset.token));
  parts.strip.addEventListener("mousemove", (e) => hover(cellAt(parts, now().s, e)?.t ?? null));
  parts.strip.addEventListener("click", (e) => {
    const at = cellAt(parts, now().s, e);
    if (at) show(at.layer < 0 ? { token: at.t } : { token: at.t, layer: at.layer });
  });
  for (const place of [parts.tokens, parts.strip]) place.addEventListener("mouseleave", () => hover(null));
  parts.tokens.addEventListener("keydown", (event) => {
    const { layer, token, s } = now();
    const last = s.pieces.length - 1;
    const go = {
      ArrowLeft: { token: Math.max(token - 1, 0) }, ArrowRight: { token: Math.min(token + 1, last) },
      ArrowUp: { layer: Math.max(layer - 1, 0) }, ArrowDown: { layer: Math.min(layer + 1, s.layers - 1) },
      Home: { token: 0 }, End: { token: last },
    }[event.key];
    if (!go) return;
    event.preventDefault();
    hover(null);
    show(go);
    parts.tokens.querySelector(".ml4-token[aria-selected=true]").focus();
  });
}

function render({ model, el }) {
  const parts = skeleton(el);
  const [palette, shades] = [model.get("palette"), model.get("shades")];
  const colour = (e) => palette[e % palette.length];
  let [s, over] = [unpack(model.get("state")), null];

  const now = () => {
    const token = Math.min(model.get("token"), s.pieces.length - 1);
    return { s, layer: model.get("layer"), token, shown: over ?? token };
  };
  const draw = () => {
    const at = now();
    parts.layer.value = at.layer;
    parts.which.textContent = `${at.layer}${s.dense(at.layer) ? ", dense" : ""}`;
    drawTokens(parts, s, colour, at);
    drawExperts(parts, s, colour, shades, at);
    drawStrip(parts, s, at);
    if (over === null) scrollTo(parts, at.token);
  };
  const lay = () => {
    [s, over] = [unpack(model.get("state")), null];
    parts.layer.max = s.layers - 1;
    layTokens(parts, s);
    layStrip(parts, s, colour);
    draw();
  };
  const write = () => {
    if (parts.text.value !== model.get("text") && document.activeElement !== parts.text) {
      parts.text.value = model.get("text");
    }
    parts.text.rows = Math.min(Math.max(parts.text.value.split("\n").length, 2), 6);
    parts.examples.querySelectorAll("button").forEach((button) =>
      button.setAttribute("aria-pressed", button.title === model.get("text")));
  };
  const say = () => { parts.message.textContent = model.get("message"); };
  const show = (changes) => {
    Object.entries(changes).forEach(([name, value]) => model.set(name, value));
    model.save_changes();
  };
  const hover = (t) => { if (t !== over) { over = t; draw(); } };

  parts.samples.hidden = !model.get("examples").length;
  parts.examples.append(...model.get("examples").map(([name, text]) => make("button", "ml4-example",
    { type: "button", textContent: name, title: text, onclick: () => show({ text }) })));
  parts.text.readOnly = !model.get("live");
  if (!model.get("live")) parts.text.title = "To type a text of your own, run this notebook.";
  // JupyterLab would take arrow keys and letters for itself
  parts.text.setAttribute("data-lm-suppress-shortcuts", "true");
  el.addEventListener("keydown", (event) => event.stopPropagation());
  listen(parts, model, now, show, hover);

  const heard = { state: lay, layer: draw, token: draw, text: write, message: say };
  Object.entries(heard).forEach(([name, call]) => model.on(`change:${name}`, call));
  write(), say(), lay();
  requestAnimationFrame(draw); // once it has a width, the strip can scroll to its token
  return () => Object.entries(heard).forEach(([name, call]) => model.off(`change:${name}`, call));
}

export default { render };
