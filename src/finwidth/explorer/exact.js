// Exact moments of the kernel at one input: paths are carried through the network in pairings (docs/theory/transfer.md,
// docs/theory/residual.md). Gaussian weights, NTK parameterization, biases trained from zero.
//
// A network is {kind: "mlp" or "resnet", depth, width, negative, branch, input}: depth counts the weight layers of an MLP and
// the blocks of a ResNet, negative is the activation's slope below zero, input is |x|^2/n_0.
const PAIRINGS = [0, 1, 2]; // of four paths: (12)(34), (13)(24), (14)(23)
const OPEN = { two: 1, four: 1 }; // no gates
const total = (state) => state[0] + state[1] + state[2];
const combine = (...terms) => PAIRINGS.map((k) => terms.reduce((value, [factor, state]) => value + factor * state[k], 0));
const only = (k, value) => PAIRINGS.map((j) => (j === k ? value : 0));

// Means of products of two, and of four, slopes of one neuron.
const gatesOf = (net) => ({ two: (1 + net.negative ** 2) / 2, four: (1 + net.negative ** 4) / 2 });

// The sums over four paths at n neurons that meet in pairs: all at one neuron, or two pairs at two.
const contract = (state, n, gate) => {
  const together = gate.four * n * total(state);
  return PAIRINGS.map((k) => gate.two ** 2 * n * (n - 1) * state[k] + together);
};

// Four paths by which of two marks are placed ("10": the first). A mark is a pair of paths that one parameter differentiates:
// the first is (12), the second (34) for E[K^2] (pairing 0), or (23) for E[dK] (pairing 2). `pair` is for two paths.
const input = (length, second) => ({
  second,
  four: {
    "00": [length ** 2, length ** 2, length ** 2],
    "10": only(0, length ** 2 + length),
    "01": only(second, length ** 2 + length),
    "11": second === 0 ? only(0, (length + 1) ** 2) : [0, 0, 0],
  },
  pair: { free: length, marked: length + 1 },
});

// A weight layer from n neurons with weights of variance v, multiplier v. Paths born of a bias here live on with probability
// `alive`: below them a layer may be all zero.
const layer = ({ second, four, pair }, n, v, gate, alive = 1) => {
  const through = Object.fromEntries(
    Object.entries(four).map(([marks, state]) => [marks, contract(state, n, gate).map((value) => v * v * value)]),
  );
  const free = v * n * gate.two * pair.free, marked = v * n * gate.two * pair.marked;
  const first = (state) => only(0, state[0]), other = (state) => only(second, state[second]);
  const both = [[1, through["11"]], [1, other(through["10"])], [1, first(through["01"])]];
  if (second === 0) both.push([1, first(through["00"])], [1, only(0, 2 * (marked + free) + alive)]);
  return {
    second,
    four: {
      "00": through["00"],
      "10": combine([1, through["10"]], [1, first(through["00"])], [1, only(0, free)]),
      "01": combine([1, through["01"]], [1, other(through["00"])], [1, only(second, free)]),
      "11": combine(...both),
    },
    pair: { free, marked: marked + free + alive },
  };
};

// A block a x + b W phi(V x): all four paths go round it, two of them, or none.
const block = (state, n, m, gate, gains, skip, branch) => {
  const v = gains.inner / n, w = gains.outer / m, a = skip ** 2, b = branch ** 2;
  const { second, four, pair } = state;
  const round = layer(layer(state, n, v, OPEN), m, w, gate);
  const half = (k, marks) => w * m * gate.two * v * ((n - 1) * four[marks][k] + total(four[marks]));
  const born = 1 + w * m * gate.two;
  const mixed = Object.fromEntries(Object.keys(four).map((marks) => [marks, PAIRINGS.map((k) => 2 * half(k, marks))]));
  for (const j of "01") mixed["1" + j] = combine([1, mixed["1" + j]], [1, only(0, 2 * half(0, "0" + j))]);
  for (const i of "01") mixed[i + "1"] = combine([1, mixed[i + "1"]], [1, only(second, 2 * half(second, i + "0"))]);
  mixed["10"] = combine([1, mixed["10"]], [1, only(0, born * pair.free)]);
  mixed["01"] = combine([1, mixed["01"]], [1, only(second, born * pair.free)]);
  if (second === 0) mixed["11"] = combine([1, mixed["11"]], [1, only(0, 2 * born * pair.marked)]);
  return {
    second,
    four: Object.fromEntries(
      Object.keys(four).map((marks) => [
        marks, combine([a * a, four[marks]], [a * b, mixed[marks]], [b * b, round.four[marks]]),
      ]),
    ),
    pair: { free: a * pair.free + b * round.pair.free, marked: a * pair.marked + b * round.pair.marked },
  };
};

const passed = (net, second) => {
  const gate = gatesOf(net), { depth, width: n } = net;
  if (net.kind === "mlp") {
    const gain = 1 / gate.two, dead = net.negative === 0 ? 2 ** -n : 0;
    let state = input((depth > 1 ? gain : 1) * net.input, second); // gains keep lengths; that of the head is 1
    for (let i = 2; i <= depth; i++) {
      state = i < depth ? layer(state, n, gain / n, gate, (1 - dead) ** (i - 1)) : layer(state, n, 1 / n, gate);
    }
    return state;
  }
  let state = input(net.input, second);
  const gains = { inner: 1 / gate.two, outer: 1 };
  for (let l = 0; l < depth; l++) state = block(state, n, n, gate, gains, 1, net.branch);
  return layer(state, n, 1 / n, OPEN);
};

// E[K], E[K^2] and E[dK]/rate.
const moments = (net) => {
  const aligned = passed(net, 0);
  return { mean: aligned.pair.marked, second: total(aligned.four["11"]), update: -2 * total(passed(net, 2).four["11"]) };
};
