// The page: from its controls to a network, from a network to what it shows. The state is in the address, after the #.
const DRAWS = 20000;
const at = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

// Controls of numbers: limits, whether whole, and how sliders map to them.
const NUMBERS = {
  depth: { name: "Depth", from: 1, to: 1000, whole: true, begin: 17 },
  width: { name: "Width", from: 6, to: 100000, whole: true, begin: 64, up: (s) => Math.round(2 ** s), down: Math.log2 },
  input: { name: "Input", from: 1e-4, to: 1e4, begin: 1, up: (s) => Number((10 ** s).toPrecision(3)), down: Math.log10 },
  negative: { name: "Slope below zero", from: -1, to: 1, begin: 0 },
};

const read = () => {
  const values = Object.fromEntries(Object.keys(NUMBERS).map((name) => [name, Number(at(name).value)]));
  const branch = at("branch").value;
  return {
    kind: chosen("kind"), ...values, norm: chosen("norm") === "none" ? null : "rms",
    branch: branch === "1/sqrt(depth)" ? 1 / Math.sqrt(values.depth) : Number(branch), branchText: branch,
  };
};

// What is wrong with a control of a number, if anything is.
const faultOf = (name) => {
  const { name: title, from, to, whole } = NUMBERS[name], value = Number(at(name).value);
  const fits = at(name).value !== "" && value >= from && value <= to && (!whole || Number.isInteger(value));
  at(name).setAttribute("aria-invalid", String(!fits));
  return fits ? "" : `${title}: give ${whole ? "a whole number" : "a number"} from ${from} to ${to}. `;
};

const powerOfTen = (exponent) => `10${[...String(exponent)].map((sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign])).join("")}`;

const number = (value, digits = 6, large = 1e6) => {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : `beyond ${value < 0 ? "-" : ""}10³⁰⁸`;
  const size = Math.abs(value);
  if (size === 0 || (size < large && size >= 1e-3)) return String(Number(value.toPrecision(digits)));
  const [first, exponent] = value.toExponential(Math.min(digits - 1, 4)).split("e").map(Number);
  return `${first === 1 ? "" : `${first} × `}${powerOfTen(exponent)}`;
};

const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];

const cvOf = (exact) => Math.sqrt(Math.max(0, exact.second / exact.mean ** 2 - 1));

const rowsOf = (exact, [median, quantiles]) => {
  const row = (name, value, how) => `<tr><th scope="row">${name}</th><td>${value}</td><td class="soft">${how}</td></tr>`;
  const rows = exact ? [
    row("mean, E[K]", number(exact.mean), "exact"),
    row("second moment, E[K²]", number(exact.second), "exact"),
    row("standard deviation over mean", number(cvOf(exact)), "exact"),
    row("mean first change, E[ΔK]/λ", number(exact.update), "exact, gates held"),
  ] : [];
  return [...rows, row("median", median, "draws"), row("16% and 84% quantiles", quantiles, "draws")].join("");
};

// The share of networks with a hidden layer that is all zero.
const deadShare = (net) => (net.kind === "mlp" && net.negative === 0 ? -Math.expm1((net.depth - 1) * Math.log1p(-(2 ** -net.width))) : 0);

const words = (net, exact, spread) => {
  const dead = deadShare(net), many = dead > 0.999 ? "Nearly all" : `${number(100 * dead, 3)}% of`;
  const silent = dead < 0.01 ? "" : `${many} such networks are dead: a layer has no open neuron, K is 1 and the output does not depend on the input. `;
  if (dead > 0.5) return `${silent}${exact ? "Means rest on the others." : ""}`;
  const size = net.norm ? spread : cvOf(exact);
  if (!Number.isFinite(size)) return "The moments are beyond the numbers of this page, which end at 10³⁰⁸; finwidth.moments has them.";
  const what = net.norm ? "half the distance of its 16% and 84% quantiles is" : "its standard deviation is";
  const much = size > 10 ? "noisy beyond use of its mean" : size > 0.1 ? "noisy" : "settled";
  const varies = `${silent}The kernel is ${much} between initializations: ${what} ${number(size, 2)} of its ${net.norm ? "median" : "mean"}.`;
  if (net.norm) return `${varies} Means of K are infinite, or nearly so, with a norm; quantiles are what describes it.`;
  const move = Math.abs(exact.update) / exact.mean ** 2;
  return `${varies} A first step of SGD at the rate 1/E[K] moves its mean by ${number(move, 2)} of it, with the gates held; single networks move further, which finwidth.regime tells.`;
};

const short = (value) => number(value, 3, 1e5);

// About seven numbers between two powers of ten: 1, 2, 5 times powers of ten, only the powers, or evenly spaced.
const ticksBetween = (from, to) => {
  const found = [];
  const every = Math.max(1, Math.ceil((to - from) / 7));
  for (let power = Math.floor(from); power <= to; power += to - from > 3 ? every : 1) {
    for (const digit of to - from > 3 ? [1] : [1, 2, 5]) found.push(digit * 10 ** power);
  }
  const inside = found.filter((value) => Math.log10(value) >= from && Math.log10(value) <= to);
  if (inside.length > 2) return inside;
  const low = 10 ** from, high = 10 ** to, unit = 10 ** Math.floor(Math.log10((high - low) / 3)), even = [];
  const step = unit * (Math.floor((high - low) / 5 / unit) || 1);
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) even.push(value);
  return even.filter((_, i) => i % Math.ceil(even.length / 7) === 0);
};

const histogram = (K, mean, infinite) => {
  const logs = K.filter((value) => value > 0 && value < Infinity).map(Math.log10).sort((a, b) => a - b);
  const low = quantile(logs, 0.0005), high = Math.max(quantile(logs, 0.9995), low + 0.02);
  const pad = 0.05 * (high - low), far = infinite ? Math.log10(infinite) : low;
  const [from, to] = [Math.min(low, far) - pad, Math.max(high, far) + pad];
  const bins = 70, counts = new Array(bins).fill(0);
  for (const value of logs) {
    const i = Math.floor(((value - from) / (to - from)) * bins);
    if (i >= 0 && i < bins) counts[i] += 1;
  }
  const wide = Math.min(560, Math.max(300, at("law").clientWidth)), end = wide - 20; // letters keep their size on phones
  at("law").setAttribute("viewBox", `0 0 ${wide} 250`);
  const most = Math.max(...counts), x = (value) => 20 + ((value - from) / (to - from)) * (wide - 40), y = (count) => 205 - (count / most) * 175;
  const bars = counts.map((count, i) => {
    const left = 20 + (i * (wide - 40)) / bins;
    return `<rect x="${left.toFixed(1)}" y="${y(count).toFixed(1)}" width="${((wide - 40) / bins - 0.4).toFixed(1)}" height="${(205 - y(count)).toFixed(1)}" fill="var(--fill)"/>`;
  });
  let last = -Infinity;
  const ticks = ticksBetween(from, to).map((value) => {
    const place = x(Math.log10(value));
    if (place < last + 45) return ""; // its number would meet the one before
    last = place;
    return `<line x1="${place}" x2="${place}" y1="205" y2="210" stroke="var(--text)"/><text x="${place}" y="224" text-anchor="middle">${short(value)}</text>`;
  });
  const line = (value, dash, name, height) => {
    if (!(value > 0) || !Number.isFinite(value)) return "";
    const place = Math.log10(value);
    if (place < from || place > to) return "";
    const side = x(place) + 6.5 * name.length > wide ? "end" : "start", shift = side === "end" ? -4 : 4;
    return `<line x1="${x(place)}" x2="${x(place)}" y1="12" y2="205" stroke="var(--mark)" stroke-width="2" stroke-dasharray="${dash}"/><text x="${x(place) + shift}" y="${height}" text-anchor="${side}">${name}</text>`;
  };
  const same = Math.abs(mean - infinite) < 1e-3 * infinite, middle = 10 ** quantile(logs, 0.5);
  at("law").innerHTML = `${bars.join("")}<line x1="20" x2="${end}" y1="205" y2="205" stroke="var(--text)"/>${ticks.join("")}
    ${same ? line(mean, "", "mean, and infinite width", 20) : line(infinite, "", "infinite width", 20) + line(mean, "6 4", "mean", 34)}${line(middle, "2 3", "median", 48)}
    <text x="${wide / 2}" y="243" text-anchor="middle">K(x, x), on a logarithmic axis</text>`;
  at("law").setAttribute("aria-label", `Histogram of K: 5% of the draws are below ${number(10 ** quantile(logs, 0.05))}, half below ${number(middle)}, 95% below ${number(10 ** quantile(logs, 0.95))}.`);
};

// K of the infinitely wide network: the mean, with nothing dead; not told of norms.
const infinitelyWide = (net, exact) => {
  if (!exact || net.kind === "resnet") return exact && exact.mean;
  return net.depth * net.input + 1 + (net.depth - 1) * gatesOf(net).two;
};

const code = (net) => {
  const act = net.negative === 0 ? "" : net.negative === 1 ? ', activation="linear"' : `, activation=finwidth.Activation("two slopes", 1, ${net.negative})`;
  const option = net.negative === 0 ? "" : net.negative === 1 ? " --activation linear" : ` --activation 1,${net.negative}`;
  const norm = net.norm ? ', norm="rms"' : "", flag = net.norm ? " --norm rms" : "";
  const x = Number(Math.sqrt(net.input).toPrecision(12));
  const branch = net.branchText === "1" ? "" : `, branch=${net.branchText === "1/sqrt(depth)" ? '"1/sqrt(depth)"' : net.branchText}`;
  const scale = net.branchText === "1" ? "" : ` --branch "${net.branchText}"`;
  const residual = net.kind === "resnet";
  const widths = residual ? `[1, ${net.width}, 1], ${net.depth}${branch}` : `[1, ${net.depth > 1 ? `*[${net.width}] * ${net.depth - 1}, ` : ""}1]`;
  const shape = residual ? `1,${net.width},1 --blocks ${net.depth}${scale}` : net.depth > 1 ? `1,${net.width}x${net.depth - 1},1` : "1,1";
  const values = net.norm ? `print(finwidth.summarize(net, [${x}], draws=${DRAWS}))` : `m = finwidth.moments(net, [${x}])\nprint(m.mean, m.second_moment, m.cv, m.update["dK"])\nK = finwidth.sample(net, [${x}], draws=${DRAWS}).K`;
  return {
    python: `import finwidth\n\nnet = finwidth.${residual ? "ResNet" : "MLP"}(${widths}${act}${norm})\n${values}`,
    shell: `finwidth sample ${shape}${option}${flag} --input ${x} --draws ${DRAWS}`,
  };
};

let seed = 0, running = 0;

const link = () => {
  const { kind, depth, width, input, negative, branchText: branch, norm } = read();
  return `#${new URLSearchParams({ kind, depth, width, input, negative, branch, norm: norm || "none", seed })}`;
};

const remember = () => {
  try {
    history.replaceState(null, "", link());
  } catch { /* some browsers take only so many a minute; the last is told again when its draws are done */ }
};

const show = () => {
  const wrong = Object.keys(NUMBERS).map(faultOf).join("");
  at("fault").textContent = wrong && `${wrong}Until then the page stays as it was.`;
  if (wrong) return;
  const net = read(), mine = ++running;
  const residual = net.kind === "resnet";
  at("branch-row").hidden = !residual;
  at("depth-name").textContent = residual ? "Depth: blocks of two weight layers" : "Depth: weight layers";
  at("norm-place").textContent = residual ? "before blocks" : "before activations";
  for (const [name, { down }] of Object.entries(NUMBERS)) {
    at(`${name}-slider`).value = down ? down(net[name]) : net[name];
    at(`${name}-slider`).setAttribute("aria-valuetext", String(net[name]));
  }
  const text = code(net);
  at("python").textContent = text.python;
  at("shell").textContent = text.shell;
  remember();
  const exact = net.norm ? null : moments(net);
  at("values").innerHTML = rowsOf(exact, ["…", "…"]); // exact values at once, draws as they come
  if (exact) at("says").textContent = words(net, exact);
  draws(net, mine, (K) => {
    const sorted = Float64Array.from(K).sort(), finished = K.length === DRAWS;
    const [low, middle, high] = [0.16, 0.5, 0.84].map((q) => quantile(sorted, q));
    at("values").innerHTML = rowsOf(exact, [number(middle), `${number(low)}, ${number(high)}`]);
    at("drawn").textContent = `${finished ? "" : `${K.length.toLocaleString("en")} of `}${DRAWS.toLocaleString("en")}`;
    histogram(K, exact ? exact.mean : NaN, infinitelyWide(net, exact));
    if (!finished) return;
    if (!exact) at("says").textContent = words(net, exact, (high - low) / (2 * middle));
    remember();
    document.body.dataset.done = String(mine);
    window.result = { net, exact, K };
  });
};

// Draws in slices, so that controls answer, shown twice a second; a newer network stops them.
const draws = (net, mine, shown) => {
  const rng = generator(seed), K = [];
  let next = performance.now() + 500;
  const slice = () => {
    if (mine !== running) return;
    const until = performance.now() + 30;
    while (K.length < DRAWS && performance.now() < until) K.push(draw(net, rng));
    if (K.length === DRAWS || performance.now() > next) {
      shown(K);
      next = performance.now() + 500;
    }
    if (K.length < DRAWS) setTimeout(slice, 0);
  };
  slice();
};

const restore = () => {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [name, { begin }] of Object.entries(NUMBERS)) at(name).value = state.get(name) ?? begin;
  for (const [name, begin] of [["kind", "mlp"], ["norm", "none"]]) {
    const boxes = [...document.querySelectorAll(`input[name="${name}"]`)];
    (boxes.find((each) => each.value === state.get(name)) || boxes.find((each) => each.value === begin)).checked = true;
  }
  const scales = [...at("branch").options].map((each) => each.value);
  at("branch").value = scales.includes(state.get("branch")) ? state.get("branch") : "1";
  seed = Number.parseInt(state.get("seed") ?? "0", 10) || 0;
};

const copy = async (what) => {
  const text = what === "link" ? new URL(link(), location.href).href : at(what).textContent;
  try {
    await navigator.clipboard.writeText(text);
    at("copied").textContent = "Copied.";
  } catch {
    at("copied").textContent = "This browser does not let pages copy; select the text.";
  }
};

for (const [name, { up }] of Object.entries(NUMBERS)) {
  at(`${name}-slider`).addEventListener("input", (event) => {
    const value = Number(event.target.value);
    at(name).value = up ? up(value) : value;
    show();
  });
}
at("form").addEventListener("input", (event) => { if (event.target.type !== "range") show(); });
at("form").addEventListener("submit", (event) => event.preventDefault());
at("again").addEventListener("click", () => { seed += 1; show(); });
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button.dataset.copy));
window.addEventListener("hashchange", () => { restore(); show(); });
restore();
show();
