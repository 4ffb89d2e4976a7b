// What fits, and how fast decoding can be: the arithmetic of serve/memory.py and serve/roofline.py,
// from each model's counts. x holds the knobs (model, scheme, gpu, context, batch, cache, chunked),
// the tables models and gpus, and workspace, in bytes on each GPU.

export const GB = 1e9;
export const comma = (n) => n.toLocaleString("en-US");
const fixed = (n, digits) => n.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
export const inGb = (bytes) => `${fixed(bytes / GB, 2)} GB`;
const sum = (parts) => Object.values(parts).reduce((all, part) => all + part, 0);

/** Keys of one text of n tokens, over all layers. */
export function entriesOf({ layers, nope, chunk }, n, chunked) {
  const near = chunked && chunk !== null ? Math.min(n, chunk) : n;
  return nope * n + (layers - nope) * near;
}

/** Keys that the last of n tokens looks at, over all layers; of a chunk the mean. */
function entriesRead({ layers, nope, chunk }, n, chunked) {
  const near = chunked && chunk !== null && n >= chunk ? (chunk + 1) / 2 : n;
  return nope * n + (layers - nope) * near;
}

export function planOf(x) {
  const [model, gpu] = [x.models[x.model], x.gpus[x.gpu]];
  const weights = model.schemes[x.scheme].weights;
  const cache = x.batch * entriesOf(model, x.context, x.chunked) * model.slot[x.cache];
  const [workspace, memory] = [gpu.gpus * x.workspace, gpu.gpus * gpu.memory];
  const total = sum(weights) + cache + workspace;
  return { weights, cache, workspace, memory, total, free: memory - total };
}

/** The last context at which all texts of the batch still fit, at most what the model can read. */
export function longestOf(x) {
  let [low, high] = [0, x.models[x.model].most];
  while (low < high) {
    const context = Math.floor((low + high + 1) / 2);
    if (planOf({ ...x, context }).free >= 0) low = context;
    else high = context - 1;
  }
  return low;
}

export const distinctExperts = ({ experts, top_k: k }, tokens) => experts * (1 - (1 - k / experts) ** tokens);

/** One step of decoding: bytes read by component, tokens per second at most, and what bounds them. */
export function stepOf(x) {
  const [model, gpu] = [x.models[x.model], x.gpus[x.gpu]];
  const { weights, each, row, expert } = model.schemes[x.scheme];
  const keys = entriesRead(model, x.context, x.chunked);
  const embedding = Math.min(x.batch * row, weights.embedding); // a row for each text
  const reads = { ...each, embedding, cache: x.batch * keys * model.slot[x.cache] };
  if (expert) reads["routed experts"] = expert * distinctExperts(model, x.batch);
  const bytes = sum(reads);
  const memory = (x.batch * gpu.gpus * gpu.bandwidth) / bytes;
  const arithmetic = (gpu.gpus * gpu.flops) / (model.flops + model.flops_per_key * keys);
  return { reads, bytes, ceiling: Math.min(memory, arithmetic), bound: memory <= arithmetic ? "memory" : "arithmetic" };
}

export function planInWords(x) {
  const { weights, cache, workspace, free } = planOf(x);
  const size = `${x.batch} × ${comma(x.context)} tokens`;
  const parts = `${inGb(sum(weights))} of weights, ${inGb(cache)} of cache, ${inGb(workspace)} of workspace`;
  const verdict = free >= 0 ? `It fits, ${inGb(free)} are left.` : `It does not fit: ${inGb(-free)} are missing.`;
  const { label } = x.models[x.model].schemes[x.scheme];
  return `${x.model} in ${label} on ${x.gpu}, ${size}: ${parts}. ${verdict}`;
}

export function roomInWords(x) {
  const [longest, most] = [longestOf(x), x.models[x.model].most];
  if (longest === 0) return "Not one token fits beside the weights.";
  const who = x.batch === 1 ? "One text" : `Each of ${x.batch} texts`;
  const whole = longest === most ? ", all that the model can read" : "";
  return `${who} could be ${comma(longest)} tokens long${whole}.`;
}

export function speedInWords(x) {
  if (planOf(x).free < 0) return "";
  const { bytes, ceiling, bound } = stepOf(x);
  const share = x.batch === 1 ? "" : `, ${fixed(ceiling / x.batch, 1)} for each text`;
  return `A step reads ${inGb(bytes)}: at most ${fixed(ceiling, 0)} tokens per second${share}, bound by ${bound}.`;
}
