// What the explorer needs of anywidget's model where there is no Python: readings stored in the page.

import { numbers, packed, unpack } from "./reading.js";

const NOT_HERE = "This page has no Python behind it and does not hold that: run this notebook.";
const LOSS = { zero: 32768, steps: 2048 }; // a stored change of loss: steps per nat around zero

/** The reading with one expert off: its layer's choices follow from the scores, the losses are stored. */
function withoutExpert(state, { layer, expert }, changes) {
  const [s, at, k, tokens] = [unpack(state), state.moe.indexOf(layer), state.top_k, state.pieces.length];
  const choice = [...numbers(state.choice)];
  for (let t = 0; t < tokens; t++) {
    const scores = s.score(layer, t);
    scores[expert] = -1;
    const order = scores.map((_, e) => e).sort((x, y) => scores[y] - scores[x]);
    for (let i = 0; i < k; i++) choice[(at * tokens + t) * k + i] = order[i];
  }
  const from = expert * (tokens - 1);
  const loss = state.loss.map((nats, t) => nats + (changes[from + t] - LOSS.zero) / LOSS.steps);
  return { ...state, choice: packed(choice), loss, partial: true };
}

/** values: those of the widget, and `texts` and `knockouts` by model and by text. */
export function standIn(values) {
  const heard = {};
  const stored = (model, text) => values.texts[model]?.[text];
  const fire = (name) => (heard[`change:${name}`] ?? []).forEach((call) => call());
  const put = (name, value) => { values[name] = value; fire(name); };
  let last = values.edits; // that could be answered

  const answer = {
    state() {
      const found = stored(values.model, values.text);
      put("message", found ? "" : NOT_HERE);
      if (!found) return;
      if (values.edits.length) put("edits", []);
      answer.steered();
      put("state", found);
      answer.other();
    },
    other() {
      const [name, text] = { text: [values.model, values.other_text], model: [values.other_model, values.text] }[values.compare] ?? [];
      const found = name === undefined ? {} : stored(name, text);
      put("other_message", found ? "" : NOT_HERE);
      if (found) put("other", found);
    },
    steered() {
      const [edit, more] = values.edits;
      const held = edit && values.knockouts[values.model]?.[values.text]?.[edit.layer];
      const can = !edit || (held && !more && edit.kind === "off");
      put("steer_message", can ? "" : NOT_HERE);
      if (!can) return put("edits", last);
      last = values.edits;
      put("steered", edit ? withoutExpert(stored(values.model, values.text), edit, numbers(held)) : {});
    },
  };
  Object.assign(values, { state: stored(values.model, values.text), other: {} });
  answer.other();
  const follows = { text: "state", model: "state", compare: "other", other_text: "other", other_model: "other", edits: "steered" };
  return {
    get: (name) => values[name],
    on: (name, call) => (heard[name] ??= []).push(call),
    off() {},
    save_changes() {},
    set(name, value) {
      put(name, value);
      answer[follows[name]]?.();
    },
  };
}
