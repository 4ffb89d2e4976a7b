// What the reader does: mouse, keys, typing. Each becomes a change of the model's values.

import { cellAt } from "./layers.js";
import { withEdit } from "./steering.js";

const TYPING_MS = 120; // a pause in typing this long sends the text

/** show(changes) sets values; now() is what is drawn; hover(side, token or null); pick(expert). */
export function listen(parts, { model, now, show, hover, pick }) {
  listenToTyping(parts.text, (text) => show({ text }));
  listenToTyping(parts.otherText, (text) => show({ other_text: text }));
  parts.layer.addEventListener("input", () => show({ layer: +parts.layer.value }));
  parts.otherLayer.addEventListener("input", () => show({ other_layer: +parts.otherLayer.value }));
  listenToTokens(parts.tokensA, "a", { now, show, hover });
  listenToTokens(parts.tokensB, "b", { now, show, hover });
  listenToLayers(parts, { now, show, hover });
  listenToExperts(parts, { model, now, show, pick });
}

function listenToTyping(box, send) {
  let typing;
  box.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => send(box.value), TYPING_MS);
  });
}

/** Side b has a token of its own where the texts differ; then a token takes its partner along. */
function taking(side, t, { texts, match }) {
  if (!texts) return { token: t };
  const partner = side === "a" ? match[t] : match.indexOf(t);
  const [here, there] = side === "a" ? ["token", "other_token"] : ["other_token", "token"];
  return { [here]: t, ...(partner >= 0 ? { [there]: partner } : {}) };
}

function listenToTokens(box, side, { now, show, hover }) {
  const at = (event) => {
    const chip = event.target.closest(".ml4-token");
    return chip && +chip.dataset.token;
  };
  const heard = (event, call) => at(event) !== null && call(at(event));
  box.addEventListener("click", (e) => heard(e, (t) => show(taking(side, t, now()))));
  box.addEventListener("mouseover", (e) => heard(e, (t) => hover(side, t)));
  box.addEventListener("mouseleave", () => hover(side, null));
  box.addEventListener("keydown", (event) => {
    const world = now();
    const { s, layer, token } = world[side];
    const [last, name] = [s.pieces.length - 1, side === "b" && !world.texts ? "other_layer" : "layer"];
    const to = (t) => taking(side, Math.min(Math.max(t, 0), last), world);
    const level = (l) => ({ [name]: Math.min(Math.max(l, 0), s.layers - 1) });
    const go = {
      ArrowLeft: () => to(token - 1), ArrowRight: () => to(token + 1),
      ArrowUp: () => level(layer - 1), ArrowDown: () => level(layer + 1),
      Home: () => to(0), End: () => to(last),
    }[event.key];
    if (!go) return;
    event.preventDefault();
    hover(side, null);
    show(go());
    queueMicrotask(() => box.querySelector(".ml4-token[aria-selected=true]").focus()); // once drawn
  });
}

function listenToLayers(parts, { now, show, hover }) {
  const { strip } = parts;
  strip.addEventListener("mousemove", (e) => hover("a", cellAt(parts, now().a.s, e)?.t ?? null));
  strip.addEventListener("mouseleave", () => hover("a", null));
  strip.addEventListener("click", (e) => {
    const [world, at] = [now(), cellAt(parts, now().a.s, e)];
    if (at) show({ ...taking("a", at.t, world), ...(at.layer < 0 ? {} : { layer: at.layer }) });
  });
  for (const place of [parts.path, parts.matrix]) {
    place.addEventListener("click", (event) => {
      const row = event.target.closest("[data-layer]");
      if (row) show({ layer: +row.dataset.layer });
    });
  }
}

function listenToExperts(parts, { model, now, show, pick }) {
  const expert = (event) => event.target.closest("[data-expert][role=button]")?.dataset.expert;
  parts.experts.addEventListener("click", (e) => expert(e) && pick(+expert(e)));
  parts.experts.addEventListener("keydown", (event) => {
    if (!expert(event) || ![" ", "Enter"].includes(event.key)) return;
    event.preventDefault();
    pick(+expert(event));
  });
  parts.actions.addEventListener("click", (event) => {
    const act = event.target.closest("[data-act]")?.dataset.act;
    if (!act) return;
    const { a, picked } = now();
    const edit = { layer: a.layer, kind: act === "off" ? "off" : "force", expert: picked };
    if (act === "token") edit.token = a.token;
    show({ edits: withEdit(model.get("edits"), edit) });
  });
  parts.banner.addEventListener("click", (event) => {
    const undo = event.target.closest("[data-undo]")?.dataset.undo;
    if (undo) show({ edits: undo === "all" ? [] : model.get("edits").slice(0, -1) });
  });
}
