// Who can see whom: what reach.py computes with tables, here with the ends of stretches. What a
// query sees is one stretch of keys, so what a token reaches in any number of layers is one too.

export const isNope = ({ nope_every: every }, layer) => every > 0 && (layer + 1) % every === 0;

/** The first key that query t sees; the last is t itself. */
export function firstSeen(knobs, layer, t) {
  if (isNope(knobs, layer)) return 0;
  return knobs.window ? Math.max(0, t - knobs.chunk + 1) : t - (t % knobs.chunk);
}

/** The last query that sees key s; the first is s itself. */
export function lastSeeing(knobs, layer, s) {
  const { length, chunk, window } = knobs;
  const end = window ? s + chunk - 1 : s - (s % chunk) + chunk - 1;
  return isNope(knobs, layer) ? length - 1 : Math.min(end, length - 1);
}

/** What lights up: [first, last] for the input and after each layer. */
export function litStretches(knobs) {
  const { layers, token, way } = knobs;
  const rows = [[token, token]];
  if (way === "draws") {
    for (let layer = layers - 1; layer >= 0; layer--) {
      rows.unshift([firstSeen(knobs, layer, rows[0][0]), token]);
    }
    return rows;
  }
  for (let layer = 0; layer < layers; layer++) {
    rows.push([token, lastSeeing(knobs, layer, rows[layer][1])]);
  }
  return rows;
}

export const seenBefore = (knobs, layer, t) => t - firstSeen(knobs, layer, t);

/** Keys that a layer holds at most while all tokens are read. */
export const heldKeys = (knobs, layer) =>
  isNope(knobs, layer) ? knobs.length : Math.min(knobs.length, knobs.chunk);

export const everyLayer = ({ layers }) => Array.from({ length: layers }, (_, layer) => layer);

/** The picture in a sentence, the same as widget_chunks.py's in_words. */
export function reachInWords(knobs) {
  const { token, length, layers } = knobs;
  const [rows, comma] = [litStretches(knobs), (n) => n.toLocaleString("en-US")];
  const [from, to] = knobs.way === "draws" ? rows[0] : rows[layers];
  const said = knobs.way === "draws"
    ? `Token ${token} draws on ${to - from + 1} of the ${token + 1} tokens up to ${token}`
    : `Token ${token} reaches ${to - from + 1} of the ${length - token} tokens from ${token} on`;
  const keys = everyLayer(knobs).reduce((sum, layer) => sum + heldKeys(knobs, layer), 0);
  return `${said}. The layers hold ${comma(keys)} keys for ${length} tokens, `
    + `of ${comma(layers * length)} if all saw everything.`;
}

/** A token and a layer that there are, after a change of sizes. */
export const inside = (knobs) => ({
  token: Math.min(knobs.token, knobs.length - 1), layer: Math.min(knobs.layer, knobs.layers - 1),
});
