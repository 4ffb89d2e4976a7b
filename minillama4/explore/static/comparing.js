// Two layers, two models or two texts side by side: what can honestly be said to agree.
//
// Expert 3 of one layer has nothing to do with expert 3 of another, so numbers are compared only
// where they name the same thing. Everywhere else groups are: do the same tokens stay together?

const pairs = (n) => (n * (n - 1)) / 2;

const tally = (keys) => {
  const count = new Map();
  keys.forEach((key) => count.set(key, (count.get(key) ?? 0) + 1));
  return [...count.values()].reduce((sum, n) => sum + pairs(n), 0);
};

/** Hubert and Arabie's adjusted Rand index of two ways to sort the same tokens, and its parts. */
export function agreement(a, b) {
  const both = tally(a.map((expert, t) => `${expert} ${b[t]}`));
  const [first, second, all] = [tally(a), tally(b), Math.max(pairs(a.length), 1)];
  const [chance, most] = [(first * second) / all, (first + second) / 2];
  const rand = most === chance ? 1 : (both - chance) / (most - chance);
  return { rand, both, first, chance: second / all };
}

/** For each piece of a, where it stands in b, or -1: a longest common subsequence. */
export function align(a, b) {
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    }
  }
  const match = new Array(a.length).fill(-1);
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) match[i++] = j++;
    else if (best[i + 1][j] >= best[i][j + 1]) i++;
    else j++;
  }
  return match;
}

/** The share of two loads that coincides: 1 for equal shares, 0 if no expert serves both. */
export function overlap(a, b) {
  const share = (load) => {
    const total = load.reduce((x, y) => x + y, 0);
    return load.map((n) => n / total);
  };
  const [p, q] = [share(a), share(b)];
  return p.reduce((sum, x, e) => sum + Math.min(x, q[e]), 0);
}

const MARK = { both: "ml4-together", one: "ml4-apart", pale: "ml4-pale", none: "" };

/** Of tokens that share an expert with the one in hand: together in both, or on one side only. */
export function companions(a, b, token) {
  const [inA, inB] = [a, b].map((experts) => experts.map((e) => e === experts[token]));
  const mark = (here, there) => here.map((with_, t) => (with_ ? MARK[there[t] ? "both" : "one"] : MARK.none));
  const others = (flags) => flags.filter((with_, t) => with_ && t !== token).length;
  const shared = others(inA.map((with_, t) => with_ && inB[t]));
  return { a: mark(inA, inB), b: mark(inB, inA), inA: others(inA), inB: others(inB), shared };
}

/** By name, where names mean the same: tokens with another expert, and those without a partner. */
export function byName(a, b, match) {
  const marks = { a: a.map(() => MARK.pale), b: b.map(() => MARK.pale) };
  let [same, count] = [0, 0];
  match.forEach((j, i) => {
    if (j < 0) return;
    const equal = a[i] === b[j];
    marks.a[i] = marks.b[j] = equal ? MARK.none : MARK.one;
    if (i === 0) return; // begin-of-text stands in every text
    [same, count] = [same + equal, count + 1];
  });
  return { ...marks, same, count };
}
