// Sliders that set a value of the model each, and the model's stand-in in a page with no Python.

import { escape, field } from "../page.js";

/** A knob: { name, label, min, max, step, say(value), to(slider) -> value, from(value) -> slider }. */
export function knobRows(knobs) {
  const row = ({ name, label, min, max, step = 1 }) => field(`knob-${name}`, escape(label),
    `<input type="range" data-knob="${name}" min="${min}" max="${max}" step="${step}"
      aria-label="${escape(label)}"><output data-says="${name}"></output>`);
  return `<div class="ml4-knobs">${knobs.map(row).join("")}</div>`;
}

export function listenToKnobs(el, knobs, show) {
  knobs.forEach(({ name, to = (x) => x }) => {
    const slider = el.querySelector(`[data-knob="${name}"]`);
    slider.addEventListener("input", () => show({ [name]: to(+slider.value) }));
  });
}

export function drawKnobs(el, knobs, values) {
  knobs.forEach(({ name, from = (x) => x, say = String }) => {
    const [slider, said] = [`[data-knob="${name}"]`, `[data-says="${name}"]`].map((at) => el.querySelector(at));
    const held = slider.getRootNode().activeElement === slider && slider.matches(":active");
    if (!held) slider.value = from(values[name]); // a slider that is being dragged stays in hand
    said.textContent = say(values[name]);
    slider.setAttribute("aria-valuetext", say(values[name]));
  });
}

/** show(changes) for a model: sets all of them, and tells Python if there is one. */
export const setter = (model) => (changes) => {
  Object.entries(changes).forEach(([name, value]) => model.set(name, value));
  model.save_changes();
};

/** Calls draw() once for every group of changes of these values; returns what ends that. */
export function follow(model, names, draw) {
  let due = false;
  const ask = () => {
    if (!due) queueMicrotask(() => { due = false; draw(); });
    due = true;
  };
  names.forEach((name) => model.on(`change:${name}`, ask));
  return () => names.forEach((name) => model.off(`change:${name}`, ask));
}

/** What a view needs of anywidget's model, where all its answers are its own. */
export function standIn(values) {
  const heard = {};
  return {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      (heard[`change:${name}`] ?? []).forEach((call) => call());
    },
    on: (name, call) => (heard[name] ??= []).push(call),
    off() {},
    save_changes() {},
  };
}
