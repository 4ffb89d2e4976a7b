// The planner: a model in a precision on a GPU, with a context and a batch. What lies in memory, what
// a step of decoding reads, and what follows. All of it is answered here, without Python.

import { drawPills, escape, field, keepKeys, pills } from "../page.js";
import { drawKnobs, follow, knobRows, listenToKnobs, setter } from "../irope/knobs.js";
import { comma, longestOf, planInWords, planOf, roomInWords, speedInWords, stepOf } from "./bytes.js";
import { barBox, grouped, stackedBar } from "./bars.js";

const TRAITS = ["model", "scheme", "gpu", "context", "batch", "cache", "chunked", "models", "gpus", "groups", "workspace"];
const BATCHES = [1, 4, 16, 64, 256]; // of the table
const SHORTEST = 256;
const CACHES = [["bf16", "bf16"], ["fp8", "fp8"]];
const KEEP = [[true, "one chunk"], [false, "everything"]];

const contextAt = (step, most) => Math.min(64 * Math.round((SHORTEST * 2 ** (step / 4)) / 64), most);
function stepAt(context) { // the first that is not shorter
  let step = 0;
  while (contextAt(step, Infinity) < context) step += 1;
  return step;
}
const slidersOf = (most) => [
  { name: "context", label: "Context", min: 0, max: stepAt(most), say: (n) => `${comma(n)} tokens`,
    from: stepAt, to: (step) => contextAt(step, most) },
  { name: "batch", label: "Batch", min: 0, max: 9, say: (n) => (n === 1 ? "1 text" : `${n} texts`),
    from: (n) => Math.round(Math.log2(n)), to: (step) => 2 ** step },
];

const pageOf = (sliders) => `<div class="ml4-routing ml4-irope ml4-planner">
  ${field("model", "Model", pills("model", "model"))}${field("scheme", "Weights", pills("scheme", "precision of the weights"))}
  ${field("gpu", "GPU", pills("gpu", "GPU"))}${knobRows(sliders)}
  <div class="ml4-two-rows">${field("cache", "Cache in", pills("cache", "precision of the cache"))}
    ${field("chunked", "RoPE keeps", pills("chunked", "what RoPE layers keep"))}</div>
  <p class="ml4-said" role="status" aria-live="polite"></p>
  ${barBox("held", "In memory (GB)", true)}${barBox("read", "Read for one step of decoding (GB)")}
  <p class="ml4-key ml4-parts"></p><table class="ml4-by-batch"></table></div>`;

function rowOf(x) {
  const longest = longestOf(x);
  const { ceiling } = stepOf(x);
  const fits = planOf(x).free >= 0;
  const speeds = fits ? [comma(Math.round(ceiling)), (ceiling / x.batch).toFixed(1)] : ["does not fit", ""];
  return [x.batch, longest ? comma(longest) : "none", ...speeds];
}

function tableOf(x) {
  const head = ["texts at once", "longest context", `tokens/s in all, at ${comma(x.context)}`, "for each text"];
  const row = (batch) => `<tr class="${batch === x.batch ? "ml4-now" : ""}">${rowOf({ ...x, batch }).map((cell) => `<td>${cell}</td>`).join("")}</tr>`;
  const batches = [...new Set([...BATCHES, x.batch])].sort((a, b) => a - b);
  return `<tr>${head.map((cell) => `<th>${escape(cell)}</th>`).join("")}</tr>${batches.map(row).join("")}`;
}

function drawBars(part, x) {
  const colours = Object.fromEntries(x.groups.map(({ name, colour }) => [name, colour]));
  const { weights, cache, workspace, memory } = planOf(x);
  const held = grouped({ ...weights, cache, workspace }, x.groups);
  const read = grouped(stepOf(x).reads, x.groups);
  part("held").innerHTML = stackedBar({ sizes: held, frame: memory, gpus: x.gpus[x.gpu].gpus, colours });
  part("held").setAttribute("aria-label", planInWords(x));
  part("read").innerHTML = stackedBar({ sizes: read, frame: null, colours });
  part("read").setAttribute("aria-label", speedInWords(x) || "does not fit");
  part("parts").innerHTML = held.map(([name]) => `<span><i style="background:${colours[name]}"></i> ${escape(name)}</span>`).join("");
}

function render({ model, el }) {
  const [now, show] = [() => Object.fromEntries(TRAITS.map((name) => [name, model.get(name)])), setter(model)];
  const mostOf = ({ models, model: name }) => models[name].most;
  const listed = slidersOf(Math.max(...Object.values(model.get("models")).map(({ most }) => most)));
  el.innerHTML = pageOf(listed);
  const part = (name) => el.querySelector(`.ml4-${name}`);
  const listOf = (names) => names.map((name) => [name, name]);
  const draw = () => {
    const x = now();
    drawPills(part("model"), listOf(Object.keys(x.models)), x.model, (name) =>
      show({ context: Math.min(x.context, x.models[name].most), model: name }));
    const schemes = Object.entries(x.models[x.model].schemes).map(([name, { label }]) => [name, label]);
    drawPills(part("scheme"), schemes, x.scheme, (scheme) => show({ scheme }));
    drawPills(part("gpu"), listOf(Object.keys(x.gpus)), x.gpu, (gpu) => show({ gpu }));
    drawPills(part("cache"), CACHES, x.cache, (cache) => show({ cache }));
    drawPills(part("chunked"), KEEP, x.chunked, (chunked) => show({ chunked }));
    drawKnobs(el, listed, x);
    part("said").textContent = [planInWords(x), roomInWords(x), speedInWords(x)].filter(Boolean).join(" ");
    drawBars(part, x);
    part("by-batch").innerHTML = tableOf(x);
  };
  keepKeys(el);
  listenToKnobs(el, listed, ({ context, ...more }) =>
    show(context === undefined ? more : { context: Math.min(context, mostOf(now())) }));
  draw();
  return follow(model, TRAITS, draw);
}

export default { render };
