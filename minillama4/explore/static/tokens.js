// The text, token by token: each in the colour of its expert, with the expert's number.

import { make } from "./page.js";
import { barScale, lossBar } from "./steering.js";

export function layTokens(box, { pieces, breaks }) {
  const key = JSON.stringify([pieces, breaks]);
  if (box.dataset.pieces === key) return; // the chip in focus keeps it
  box.dataset.pieces = key;
  box.replaceChildren(...pieces.flatMap((piece, t) => {
    const chip = make("button", "ml4-token", { type: "button" });
    chip.setAttribute("role", "option");
    chip.dataset.token = t;
    chip.append(make("span", "", { textContent: piece }), make("sub", ""));
    const cell = make("span", "ml4-cell");
    cell.append(chip, make("span", "ml4-change"));
    return breaks.includes(t) ? [cell, make("span", "ml4-break")] : [cell];
  }));
}

function spoken(s, layer, t) {
  const scores = s.score(layer, t);
  const named = s.choice(layer, t).map((e) => `expert ${e}, g ${scores[e].toFixed(2)}`);
  return `token ${t}, ${s.pieces[t]}: ${named.join(" and ") || "dense layer, no router"}`;
}

/** What stands beside a token: its experts; where another was asked before, that one too. */
function label(now, before) {
  const [to, from] = [now.join("+"), (before ?? now).join("+")];
  return to === from ? to : `${from}→${to}`;
}

/**
 * side: { s, layer, token, shown } and, if there are any, `before` (the reading without edits),
 * `change` (of each token's loss) and `marks` (a class for each token).
 */
export function drawTokens(box, side, colour) {
  const { s, layer, token, shown, before, change, marks } = side;
  const scale = change && barScale(change);
  for (const way of ["up", "down"]) box.style.setProperty(`--ml4-${way}`, `${scale?.[way] ?? 0}px`);
  box.setAttribute("aria-label", `tokens in the colour of their expert, layer ${layer}`);
  box.classList.toggle("ml4-changes", Boolean(change));
  box.querySelectorAll(".ml4-cell").forEach((cell, t) => {
    const [chip, bar] = cell.children;
    const chosen = s.choice(layer, t);
    cell.className = `ml4-cell ${marks?.[t] ?? ""}`;
    chip.style.backgroundColor = chosen.length ? colour(chosen[0]) : "";
    chip.lastChild.textContent = label(chosen, before?.choice(layer, t));
    chip.classList.toggle("ml4-shown", t === shown);
    chip.classList.toggle("ml4-dense", !chosen.length);
    chip.setAttribute("aria-selected", t === token);
    chip.setAttribute("aria-label", spoken(s, layer, t));
    chip.tabIndex = t === token ? 0 : -1; // one stop for the tab key, arrows inside
    bar.innerHTML = change ? lossBar(change[t], scale) : "";
  });
}
