// The bare page of the explorer, without values, and small helpers for writing HTML.

export const make = (tag, name, props = {}) =>
  Object.assign(document.createElement(tag), { className: name }, props);

export const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

export const quoted = (piece) => `<q>${escape(piece)}</q>`;

export const minus = (number) => number.replace(/^-(0\.?0*$)?/, (_, zero) => (zero ? zero : "−"));

export const signed = (x, digits = 2) => {
  const size = Math.abs(x).toFixed(digits);
  return +size === 0 ? size : `${x > 0 ? "+" : "−"}${size}`;
};

export const percent = (share) => `${Math.round(100 * share)} %`;

export const field = (name, label, inside) =>
  `<div class="ml4-field ml4-${name}-row"><span>${label}</span>${inside}</div>`;

const box = (name, label) =>
  `<textarea class="ml4-${name}" rows="2" spellcheck="false" aria-label="${label}"></textarea>`;

const slider = (name, label) => `<input class="ml4-${name}" type="range" min="0" step="1"
  aria-label="${label}"><output class="ml4-which-${name}"></output>`;

export const pills = (name, label) =>
  `<div class="ml4-pills ml4-${name}" role="group" aria-label="${label}"></div>`;

const controls = `
  ${field("text", "Text", box("text", "text"))}
  ${field("examples", "Samples", pills("examples", "sample texts"))}
  ${field("models", "Model", pills("models", "model"))}
  ${field("layer", "Layer", `${slider("layer", "layer")}${pills("scope", "what the panels show")}
    <span class="ml4-hint">on a token: ← → token, ↑ ↓ layer</span>`)}
  ${field("compare", "Compare", pills("compare", "compare with"))}
  ${field("other-text", "Text B", box("other-text", "text B"))}
  ${field("other-examples", "Samples", pills("other-examples", "sample texts for B"))}
  ${field("other-models", "Model B", pills("other-models", "model B"))}
  ${field("other-layer", "Layer B", slider("other-layer", "layer B"))}`;

const says = (name) => `<p class="ml4-message ml4-${name}" role="status" aria-live="polite"></p>`;

const tokens = (name) => `<h4 class="ml4-title-${name}"></h4>
  <div class="ml4-tokens ml4-tokens-${name}" role="listbox" aria-orientation="horizontal"></div>`;

const panels = `
  <section class="ml4-one"><h4 class="ml4-about"></h4><div class="ml4-actions"></div>
    <div class="ml4-experts"></div></section>
  <section class="ml4-two"><h4 class="ml4-about-b"></h4><div class="ml4-actions-b"></div>
    <div class="ml4-experts-b"></div></section>
  <section class="ml4-wide"><h4>All layers: the expert of each token</h4>
    <div class="ml4-map"><svg class="ml4-names" aria-hidden="true"></svg>
      <div class="ml4-scroll" tabindex="-1"><svg class="ml4-strip" role="img"></svg></div></div></section>
  <section class="ml4-through"><h4 class="ml4-about-through"></h4><div class="ml4-path"></div></section>
  <section class="ml4-loads"><h4>Load in every layer: tokens of this text per expert</h4>
    <div class="ml4-matrix"></div></section>`;

const NAMES = `text examples models layer which-layer scope compare other-text other-examples
  other-models other-layer which-other-layer message other-message steer-message banner title-a
  tokens-a title-b tokens-b agreement panels one two about about-b actions experts experts-b wide
  names scroll strip through about-through path loads matrix`;

/** Writes the page into `el` and returns its parts by name; a row of controls is `nameRow`. */
export function layPage(el) {
  el.innerHTML = `<div class="ml4-routing">${controls}${says("message")}${says("other-message")}
    <div class="ml4-banner" role="status" aria-live="polite"></div>${says("steer-message")}
    ${tokens("a")}${tokens("b")}<p class="ml4-agreement"></p>
    <div class="ml4-panels">${panels}</div></div>`;
  const camel = (name) => name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase());
  const find = (name) => [camel(name), el.querySelector(`.ml4-${name}`)];
  const rows = [...el.querySelectorAll(".ml4-field")].map((row) =>
    [camel(row.className.match(/ml4-([\w-]+-row)/)[1]), row]);
  return Object.fromEntries([...NAMES.trim().split(/\s+/).map(find), ...rows]);
}

/** A row of buttons, one of them pressed; an option is [value, label] or [value, label, title]. */
export function drawPills(parent, options, pressed, pick) {
  const key = JSON.stringify(options);
  if (parent.dataset.options !== key) {
    parent.dataset.options = key;
    parent.replaceChildren(...options.map(([value, label, title = ""]) => make("button", "ml4-pill",
      { type: "button", textContent: label, title, onclick: () => pick(value) })));
  }
  options.forEach(([value], i) =>
    parent.children[i].setAttribute("aria-pressed", value === pressed));
}

/** Keys pressed in a view are its own. JupyterLab listens above it. Notebook 7 listens before it,
    and spares what carries its opt-out: the element in focus, not one around it. */
export function keepKeys(el) {
  el.addEventListener("keydown", (event) => event.stopPropagation());
  el.addEventListener("focusin", ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", "true"));
}
