// Draws of the kernel at one input from its exact distribution, by chains of scalars; no network is built
// (docs/theory/two-slopes.md, residual-chain.md, normalisation.md). A network is as in exact.js, with norm: null or "rms".
// sfc32, and the laws that the chains need.
const generator = (seed) => {
  let a = 0x9e3779b9, b = 0x243f6a88, c = 0xb7e15162 ^ seed, count = 1, spare = null;
  const bits = () => {
    const found = (a + b + count) | 0;
    count = (count + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + found | 0;
    return found >>> 0;
  };
  for (let i = 0; i < 20; i++) bits();
  const uniform = () => (bits() + 0.5) / 4294967296;
  const normal = () => {
    if (spare !== null) { const found = spare; spare = null; return found; }
    for (;;) {
      const x = 2 * uniform() - 1, y = 2 * uniform() - 1, s = x * x + y * y;
      if (s >= 1) continue;
      const r = Math.sqrt((-2 * Math.log(s)) / s);
      spare = x * r;
      return y * r;
    }
  };
  // Chi-square of k degrees of freedom, 0 for k <= 0: gamma by Marsaglia and Tsang (2000).
  const chi2 = (k) => {
    if (k <= 0) return 0;
    if (k === 1) return normal() ** 2;
    const d = k / 2 - 1 / 3, c = 1 / Math.sqrt(9 * d);
    for (;;) {
      const x = normal(), v = (1 + c * x) ** 3;
      if (v > 0 && Math.log(uniform()) < (x * x) / 2 + d - d * v + d * Math.log(v)) return 2 * d * v;
    }
  };
  const coins = (n) => { // heads among n fair ones
    if (n <= 32) return n ? ones(bits() >>> (32 - n)) : 0;
    const { from, sums } = headsOf(n), place = (bits() * 2097152 + (bits() >>> 11) + 0.5) / 9007199254740992;
    let low = 0, high = sums.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sums[middle] < place) low = middle + 1;
      else high = middle;
    }
    return from + low;
  };
  return { normal, chi2, coins };
};

// The distribution function of the heads among n coins, where it is not 0 or 1 to 17 digits; kept for the last n.
let kept = { n: 0 };
const headsOf = (n) => {
  if (kept.n === n) return kept;
  const reach = Math.ceil(5 * Math.sqrt(n)), from = Math.max(0, (n >> 1) - reach), to = Math.min(n, (n >> 1) + reach);
  const sums = [];
  let term = 1, sum = 0; // probabilities over that of the middle
  for (let k = n >> 1; k > from; k--) term *= k / (n - k + 1);
  for (let k = from; k <= to; k++) {
    sums.push((sum += term));
    term *= (n - k) / (k + 1);
  }
  kept = { n, from, sums: sums.map((value) => value / sum) };
  return kept;
};

const ones = (word) => {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
};

// Neurons with pre-activations of this variance, in two groups by their sign: numbers, and squared lengths after slopes.
const groups = (rng, n, variance, low) => {
  const open = rng.coins(n), shut = n - open;
  const up = variance * rng.chi2(open), down = variance * rng.chi2(shut);
  return { open, shut, up, down: low * low * down, before: up + down };
};

// |D g|^2 of a vector g at these neurons: `along` is its component along their activations, the rest is normal of this variance.
const gated = (rng, { open, shut, up, down }, along, variance, low) => {
  const length = up + down;
  if (!length) return 0;
  const cross = open && shut ? Math.sqrt(variance) * rng.normal() : 0;
  const [x, y] = [Math.sqrt(up / length), Math.sqrt(down / length)];
  const high = (along * x - cross * y) ** 2 + variance * rng.chi2(open - 1);
  return low ? high + low * low * ((along * y + cross * x) ** 2 + variance * rng.chi2(shut - 1)) : high;
};

const drawMlp = (net, rng) => {
  const { depth, width: n, negative: low, norm } = net, gain = 2 / (1 + low * low);
  if (depth === 1) return net.input + 1;
  const layers = [];
  let variance = gain * net.input, length = 0;
  for (let i = 1; i < depth; i++) {
    const found = groups(rng, n, variance, low), unit = norm ? n / found.before : 1;
    length = (found.up + found.down) * unit;
    if (!length) return 1; // a dead network: the bias of the output is left
    layers.push({ ...found, variance, unit, length });
    variance = (gain * length) / n;
  }
  const output = Math.sqrt(length / n) * rng.normal();
  let K = length / n + 1, across = 1 / n, product = output; // product: of a layer's activations and their gradient
  for (const found of layers.reverse()) {
    let squared = gated(rng, found, product / Math.sqrt(found.length), across, low);
    if (norm) {
      squared = found.unit * (squared - product ** 2 / n);
      product = 0; // the norm takes what is along the pre-activations
    }
    K += (found.variance + 1) * squared;
    across = (gain / n) * squared;
  }
  return K;
};

const drawResnet = (net, rng) => {
  const { depth, width: n, negative: low, norm, branch: b } = net, v = 2 / (1 + low * low) / n, w = 1 / n;
  const blocks = [];
  let R = net.input * rng.chi2(n);
  for (let l = 0; l < depth; l++) {
    const hidden = groups(rng, n, norm ? v * n : v * R, low), Z = hidden.up + hidden.down;
    const along = Math.sqrt(w * Z) * rng.normal(), across = Math.sqrt(w * Z * rng.chi2(n - 1));
    const before = R;
    R = (Math.sqrt(R) + b * along) ** 2 + (b * across) ** 2;
    blocks.push({ hidden, Z, along, across, before, after: R });
  }
  // product = x . G of the stream; the output itself without a norm, 0 below a norm
  let product = norm ? 0 : Math.sqrt(R / n) * rng.normal();
  let Gamma = norm ? rng.chi2(n - 1) / R : product ** 2 / R + rng.chi2(n - 1) / n;
  let K = (norm ? 1 : R / n) + 1;
  for (const { hidden, Z, along, across, before, after } of blocks.reverse()) {
    const cos = (Math.sqrt(before) + b * along) / Math.sqrt(after), sin = (b * across) / Math.sqrt(after);
    const rho = Math.sqrt(Math.max(0, Gamma - product ** 2 / after)), z = rng.normal();
    const t = z / Math.sqrt(z * z + rng.chi2(n - 2)), radial = product / Math.sqrt(after);
    const g1 = radial * cos - rho * t * sin, g2 = radial * sin + rho * t * cos, g3 = rho * Math.sqrt(1 - t * t);
    const inner = along * g1 + across * g2;
    const J2 = Z ? b * b * gated(rng, hidden, inner / Math.sqrt(Z), w * Gamma, low) : 0;
    K += ((norm ? v * n : v * before) + 1) * J2 + b * b * Gamma * (w * Z + 1);
    const deviation = Math.sqrt(norm ? (n / before) * v * J2 : v * J2);
    const e1 = norm ? g1 : product / Math.sqrt(before);
    Gamma = e1 ** 2 + (g2 + deviation * rng.normal()) ** 2 + (g3 + deviation * rng.normal()) ** 2;
    Gamma += deviation ** 2 * rng.chi2(n - 3);
    if (norm) product = Math.sqrt(before) * g1;
  }
  return K + (net.input + 1) * Gamma;
};

const draw = (net, rng) => (net.kind === "mlp" ? drawMlp : drawResnet)(net, rng);
