// The Int4 explorer: how one group of weights is rounded, and what that does to a whole model. The
// rounding is done here, the losses are looked up in a sweep that Python hands over; no Python runs.

import { drawPills, field, keepKeys, pills } from "../page.js";
import { follow, setter } from "../irope/knobs.js";
import { groupBox, groupPicture, LOOKS, lossChart, pictureBox, sizeChart } from "./pictures.js";
import { groupInWords, lossInWords, sizeInWords } from "./rounding.js";

const TRAITS = ["model", "what", "how", "bits", "group", "weights", "measured", "plain", "schemes"];
const numbers = (table) => Object.keys(table).map(Number).sort((a, b) => a - b);

const page = `<div class="ml4-routing ml4-irope ml4-int4">
  ${field("model", "Model", pills("model", "model"))}${field("what", "Rounded", pills("what", "what is rounded"))}
  ${field("how", "Scale", pills("how", "how the scale is set"))}
  <div class="ml4-two-rows">${field("bits", "Bits", pills("bits", "bits for a weight"))}${field("group", "Group", pills("group", "weights that share a scale"))}</div>
  <p class="ml4-said" role="status" aria-live="polite"></p>${groupBox}
  <div class="ml4-panels">${pictureBox("over-bits", "Loss added (nats per token), over bits")}
    ${pictureBox("over-size", "The same over size: every pair of bits and group")}</div>
  <p class="ml4-key">${Object.entries(LOOKS).map(([how, look]) => `<span><u class="${look}"></u> ${how}</span>`).join("")}
    <span>hollow: the interval takes in zero</span><span>click a dot to choose it</span></p></div>`;

function render({ model, el }) {
  const show = setter(model);
  const now = () => {
    const x = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const table = x.measured[x.model][x.what][x.how];
    return { ...x, groupsToChoose: numbers(table), bitsToChoose: numbers(table[x.group]) };
  };
  el.innerHTML = page;
  const part = (name) => el.querySelector(`.ml4-${name}`);
  const choose = (name, options, x) => drawPills(part(name), options, x[name], (value) => show({ [name]: value }));
  const same = (names) => names.map((name) => [name, String(name)]);
  const draw = () => {
    const x = now();
    choose("model", same(Object.keys(x.measured)), x);
    choose("what", Object.entries(x.schemes), x);
    choose("how", same(Object.keys(LOOKS)), x);
    choose("bits", same(x.bitsToChoose), x);
    choose("group", same(x.groupsToChoose), x);
    part("said").textContent = `${sizeInWords(x)} ${lossInWords(x)}`;
    part("group-said").textContent = groupInWords(x);
    part("group-picture").innerHTML = groupPicture(x);
    part("over-bits").innerHTML = lossChart(x);
    part("over-size").innerHTML = sizeChart(x);
    part("group-picture").setAttribute("aria-label", groupInWords(x));
    for (const name of ["over-bits", "over-size"]) part(name).setAttribute("aria-label", lossInWords(x));
  };
  keepKeys(el);
  el.addEventListener("click", ({ target }) => target.dataset?.to && show(JSON.parse(target.dataset.to)));
  draw();
  return follow(model, TRAITS, draw);
}

export default { render };
