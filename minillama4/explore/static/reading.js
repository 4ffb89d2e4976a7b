// What Python sent, unpacked: for every router a table of scores and one of choices.

const SHARES = 65535; // scores travel as shares of this

export const numbers = (base64) =>
  new Uint16Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);

export const packed = (values) =>
  btoa(Array.from(new Uint8Array(Uint16Array.from(values).buffer), (c) => String.fromCharCode(c)).join(""));

/** choice(layer, t), score(layer, t), load(layer), first(layer): empty lists where a layer is dense. */
export function unpack(state) {
  const { pieces, experts, top_k: k, moe } = state;
  const [scores, choices] = [numbers(state.scores), numbers(state.choice)];
  const dense = (layer) => !moe.includes(layer);
  const row = (table, layer, t, width) => {
    const from = (moe.indexOf(layer) * pieces.length + t) * width;
    return dense(layer) ? [] : [...table.subarray(from, from + width)];
  };
  const choice = (layer, t) => row(choices, layer, t, k);
  const score = (layer, t) => row(scores, layer, t, experts).map((s) => s / SHARES);
  const first = (layer) => (dense(layer) ? [] : pieces.map((_, t) => choice(layer, t)[0]));
  const load = (layer) => {
    const count = new Array(experts).fill(0);
    pieces.forEach((_, t) => choice(layer, t).forEach((e) => count[e]++));
    return count;
  };
  return { ...state, dense, choice, score, first, load };
}

/** The layer itself if it has a router, else the nearest that has. */
export function nearestRouter({ moe }, layer) {
  const away = (other) => Math.abs(other - layer);
  return moe.reduce((best, other) => (away(other) < away(best) ? other : best), moe[0] ?? layer);
}

/** exp of the entropy: so many experts, evenly used, would be as even as this load. */
export function effectiveExperts(load) {
  const total = load.reduce((a, b) => a + b, 0);
  return Math.exp(load.reduce((sum, n) => (n ? sum - (n / total) * Math.log(n / total) : sum), 0));
}
