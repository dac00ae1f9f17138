"use strict";
/* Plots as plain data → Plotly. Colour tells series apart, the style what they are: markers were measured,
   dashes predicted, a line is a trajectory; over a heat map every line is white on a dark casing. */

const plots = JSON.parse(document.getElementById("plots").textContent);
const root = document.documentElement;
root.dataset.figures = plots.length;
root.dataset.drawn = 0;

function superscript(n) {
  return String(n).replace(/[-−]/, "⁻").replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]);
}

/** Powers of ten, all in one dress: as plain numbers if each is short. */
function powers(exponents) {
  const short = exponents.every((n) => n >= -2 && n <= 3);
  return exponents.map((n) => (short || n === 0 || n === 1 ? String(+`1e${n}`) : `10<sup>${String(n).replace("-", "−")}</sup>`));
}

/** A number to so many significant digits, as the tables have it. */
function show(value, digits = 4) {
  if (value === null || !Number.isFinite(value)) return "not finite";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e").map(Number);
  const size = Math.abs(value);
  const text = value === 0 || (size >= 1e-3 && size < 1e5)
    ? String(Number(value.toPrecision(digits)))
    : Math.abs(mantissa) === 1 ? `${mantissa < 0 ? "-" : ""}10${superscript(exponent)}` : `${mantissa} × 10${superscript(exponent)}`;
  return text.replace(/^-/, "−");
}

/** Text that Plotly shows as it is, without reading markup in it. */
function literal(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}
function faded(rgb, alpha) {
  return rgb.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
}

/* --- colours: one for each series of a claim, the same in all of its panels --- */

const PINNED = [[/rmsprop/i, 2], [/adamw?\b/i, 4], [/adagrad/i, 5], [/heavy ball|momentum/i, 3], [/\bs?gd\b|gradient descent/i, 1]];
const MANY = 80; // points of a series, beyond which they are drawn small
const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star"];
const SYMBOLS = [...SHAPES, ...SHAPES.map((shape) => `${shape}-open`)]; // as many again where the colours start anew

function parts(name) {
  return name.toLowerCase().split(/[,:;]/).map((p) => p.replace(/measured|predicted|prediction|\bthe\b|\blaw\b/g, "").trim()).filter(Boolean);
}

/** Solid series take a colour each; a dashed one that of the only solid series of its panel whose name shares a part with its own. */
function coloursOf(mine) {
  const lines = mine.flatMap((plot) => plot.heat ? [] : plot.lines);
  const chosen = new Map(), free = [1, 2, 3, 4, 5, 6, 7];
  const take = (line) => {
    const pinned = PINNED.find(([word, n]) => word.test(line.name) && free.includes(n));
    const n = pinned ? pinned[1] : free[0] ?? 1 + (chosen.size % 7);
    if (free.includes(n)) free.splice(free.indexOf(n), 1);
    chosen.set(line.name, n);
  };
  for (const line of lines) if (line.style !== "dash" && !chosen.has(line.name)) take(line);
  for (const plot of mine) {
    const dashed = plot.heat ? [] : plot.lines.filter((line) => line.style === "dash");
    for (const line of dashed.filter((d) => !chosen.has(d.name))) {
      const akin = plot.lines.filter((s) => s.style !== "dash" && parts(s.name).some((p) => parts(line.name).includes(p)));
      if (akin.length === 1) chosen.set(line.name, chosen.get(akin[0].name));
      else if (dashed.length === 1) chosen.set(line.name, 0);
      else take(line);
    }
  }
  return chosen;
}

/** The size of each point: where points of later series lie on it, it is larger, so that each is seen. */
function sizesOf(plot) {
  const shares = (axis) => {
    const scale = (v) => (v === null ? NaN : plot[axis].log ? Math.log(v) : v);
    const all = plot.lines.flatMap((line) => line[axis]).map(scale).filter(Number.isFinite);
    const low = all.reduce((a, b) => Math.min(a, b), Infinity), wide = all.reduce((a, b) => Math.max(a, b), -Infinity) - low || 1;
    return plot.lines.map((line) => line[axis].map((v) => (scale(v) - low) / wide));
  };
  const across = shares("x"), up = shares("y");
  const few = [...plot.lines.keys()].filter((k) => plot.lines[k].style === "markers" && plot.lines[k].x.length <= MANY);
  const meets = (k, i) => (other) => across[other].some((u, j) => Math.abs(u - across[k][i]) < 0.008 && Math.abs(up[other][j] - up[k][i]) < 0.015);
  return plot.lines.map((line, k) => line.x.map((_, i) => 8 + 4 * few.filter((other) => other > k).filter(meets(k, i)).length));
}

const claims = new Map();
for (const plot of plots) claims.set(plot.claim, [...(claims.get(plot.claim) ?? []), plot]);
for (const mine of claims.values()) {
  const chosen = coloursOf(mine);
  const ranks = [...new Set(mine.flatMap((p) => p.lines.filter((l) => l.style === "markers").map((l) => l.name)))];
  for (const plot of mine) {
    plot.hidden = new Set();
    plot.colours = plot.lines.map((line) => chosen.get(line.name) ?? 0);
    plot.sizes = sizesOf(plot);
    plot.symbols = plot.lines.map((line) => SYMBOLS[Math.max(ranks.indexOf(line.name), 0) % SYMBOLS.length]);
    if (plot.heat) { // one colour scale for heat maps of one quantity
      const z = mine.filter((p) => p.heat && p.heat.title === plot.heat.title).flatMap((p) => p.heat.z.flat()).filter((v) => v !== null);
      plot.zmin = plot.range?.[0] ?? z.reduce((a, b) => Math.min(a, b), Infinity);
      plot.zmax = plot.range?.[1] ?? z.reduce((a, b) => Math.max(a, b), -Infinity);
    }
  }
}

/* --- axes --- */

function edges(centres, log) {
  const u = centres.map((v) => (log ? Math.log10(v) : v));
  if (u.length === 1) u.push(u[0] + 1), u[0] -= 0; // a single column is one unit wide
  const mid = u.slice(1).map((v, i) => (u[i] + v) / 2);
  const all = centres.length === 1 ? [u[0] - 0.5, u[0] + 0.5] : [u[0] - (mid[0] - u[0]), ...mid, u.at(-1) + (u.at(-1) - mid.at(-1))];
  return all.map((v) => (log ? 10 ** v : v));
}

/** The range of a log axis in powers of ten, over what is positive. */
function logRange(plot, axis) {
  const shown = plot.lines.flatMap((line) => line[axis].flatMap((v, i) => {
    const e = axis === "y" && line.error ? line.error[i] ?? 0 : 0;
    return [v, v === null ? null : v + e, v !== null && v - e > v / 100 ? v - e : null];
  }));
  const values = (plot.heat ? edges(plot.heat[axis], true) : shown).filter((v) => v > 0);
  if (!values.length) return [-1, 1];
  const low = Math.log10(values.reduce((a, b) => Math.min(a, b))), high = Math.log10(values.reduce((a, b) => Math.max(a, b)));
  const pad = plot.heat ? 0 : Math.max((high - low) * 0.05, 0.04);
  return [low - pad, high + pad];
}

/** Ticks of a log axis: powers of ten while the range spans some, 1-2-5 within them while it does not. */
function logTicks([low, high], room) {
  const span = high - low;
  if (span < 0.35) return { tickmode: "auto", nticks: 5, minor: {} };
  const decades = [];
  for (let n = Math.ceil(low - 1e-9); n <= high + 1e-9; n++) decades.push(n);
  const within = (steps) => {
    const found = [];
    for (let n = Math.floor(low); n <= high; n++) for (const m of steps) {
      const at = n + Math.log10(m);
      if (at >= low - 1e-9 && at <= high + 1e-9) found.push(m * 10 ** n);
    }
    return found;
  };
  let vals, text;
  if (decades.length >= 3) {
    const stride = Math.max(1, Math.ceil(decades.length / Math.max(room, 2)));
    const kept = decades.filter((n) => n % stride === 0);
    vals = kept.map((n) => 10 ** n);
    text = powers(kept);
    return { tickmode: "array", tickvals: vals, ticktext: text, minor: { tickmode: "array", tickvals: stride === 1 ? within([2, 3, 4, 5, 6, 7, 8, 9]) : decades.map((n) => 10 ** n) } };
  }
  vals = [[1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3], [1]].map(within).find((found) => found.length <= Math.max(room, 3)) ?? within([1]);
  return { tickmode: "array", tickvals: vals, ticktext: vals.map((v) => show(v, 2)), minor: { tickmode: "array", tickvals: within([1, 2, 3, 4, 5, 6, 7, 8, 9]) } };
}

/** Names in place of the numbers of a heat map, as many as there is room for; of a long one the end, which tells more. */
function nameTicks(plot, axis, element) {
  const { names } = plot[axis], stride = Math.ceil(names.length / Math.max(1, Math.floor(element.clientHeight / 17)));
  const most = element.clientWidth < 500 ? 14 : 28, kept = plot.heat[axis].map((_, i) => i).filter((i) => i % stride === 0);
  const brief = (name) => ([...name].length > most ? `…${[...name].slice(1 - most).join("")}` : name);
  return { tickmode: "array", tickvals: kept.map((i) => plot.heat[axis][i]), ticktext: kept.map((i) => literal(brief(names[i]))) };
}

function axisOf(plot, axis, element, range) {
  const largest = plot.lines.flatMap((line) => line[axis]).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  const base = {
    automargin: true, fixedrange: !fine.matches, zeroline: false, showline: true, linecolor: colour("muted"), linewidth: 1,
    gridcolor: colour("grid"), showgrid: !plot.heat, ticks: "outside", ticklen: 5, tickcolor: colour("muted"),
    tickfont: { color: colour("muted"), size: 12 }, exponentformat: largest < 1e-2 || largest >= 1e6 ? "power" : "none", separatethousands: true, layer: "above traces",
  };
  if (plot[axis].names) return { ...base, type: "linear", range: range ?? [0.5, plot[axis].names.length + 0.5], ...nameTicks(plot, axis, element) };
  if (!plot[axis].log) {
    if (plot.heat) { const e = edges(plot.heat[axis], false); range ??= [Math.min(...e), Math.max(...e)]; }
    return { ...base, type: "linear", nticks: axis === "x" ? 7 : 6, ...(range ? { range } : {}) };
  }
  range ??= logRange(plot, axis);
  const room = Math.floor((axis === "x" ? element.clientWidth / 62 : element.clientHeight / 36));
  const ticks = logTicks(range, room);
  return { ...base, type: "log", range, ...ticks, minor: { ...ticks.minor, ticks: "outside", ticklen: 2.5, tickcolor: colour("muted"), tickwidth: 0.6, showgrid: false } };
}

/* --- traces --- */

function hoverOf(plot, line, i) {
  const error = line.error?.[i] ? ` ± ${show(line.error[i], 2)}` : "";
  return `<b>${literal(line.name || plot.title)}</b><br>${literal(plot.y.title)}: ${show(line.y[i])}${error}<br>${literal(plot.x.title)}: ${show(line.x[i])}`;
}

function traceOf(plot, k) {
  const line = plot.lines[k], tint = plot.colours[k] ? colour(`c${plot.colours[k]}`) : colour("predicted");
  const visible = !plot.hidden.has(k);
  const base = { type: "scatter", x: line.x, y: line.y, name: literal(line.name), visible, hoverinfo: "text", hovertext: line.x.map((_, i) => hoverOf(plot, line, i)), showlegend: true };
  if (plot.heat) {
    const casing = { ...base, mode: "lines", line: { color: "#10131a", width: 6 }, hoverinfo: "skip", hovertext: undefined, showlegend: false };
    const over = line.style === "markers"
      ? { ...base, mode: "markers", marker: { size: 8, color: "#fff", symbol: plot.symbols[k], line: { color: "#10131a", width: 1.5 } } }
      : { ...base, mode: "lines", line: { color: "#fff", width: 2.5, dash: line.style === "dash" ? "7px,5px" : "solid" } };
    return line.style === "markers" ? [over] : [casing, over];
  }
  if (line.style === "markers") {
    const many = line.x.length > MANY;
    const spread = line.error ? { error_y: { type: "data", array: line.error, arrayminus: line.error.map((e, i) => plot.y.log && line.y[i] - e <= 0 ? line.y[i] * 0.99 : e), color: tint, thickness: 1.4, width: 3 } } : {};
    return [{ ...base, ...spread, mode: "markers", marker: { size: many ? 4.5 : plot.sizes[k], opacity: 1, color: tint, symbol: plot.symbols[k], line: { color: colour("paper"), width: many ? 0 : 1 } } }];
  }
  const drawn = { ...base, mode: "lines", line: { color: tint, width: line.width ?? (line.x.length > 150 ? 1.2 : 2), dash: line.style === "dash" ? "7px,5px" : "solid" } };
  if (!line.error) return [drawn];
  const floor = (v, y) => (plot.y.log && v <= 0 ? y * 0.01 : v);
  const keep = line.y.map((y, i) => (y !== null && line.error[i] !== null ? i : -1)).filter((i) => i >= 0);
  const back = [...keep].reverse();
  return [{
    type: "scatter", mode: "lines", x: [...keep, ...back].map((i) => line.x[i]),
    y: [...keep.map((i) => line.y[i] + line.error[i]), ...back.map((i) => floor(line.y[i] - line.error[i], line.y[i]))],
    fill: "toself", fillcolor: faded(tint, 0.18), line: { width: 0 }, hoverinfo: "skip", visible, showlegend: false,
  }, drawn];
}

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

/** What colour stands for: its name, range and ticks; a logarithm is read as the quantity itself. */
function rampOf(plot) {
  const found = /^log(?:10|₁₀)\s*(?:of\s+)?/i.exec(plot.heat.title);
  const low = plot.zmin, high = plot.zmax > plot.zmin ? plot.zmax : plot.zmin + 1;
  const size = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(size));
  let step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= size);
  const tens = found && high - low > 1.5;
  if (tens) step = Math.max(1, Math.round(size));
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9; n++) ticks.push(n * step);
  return {
    name: found ? plot.heat.title.slice(found[0].length) : plot.heat.title, low, high, ticks,
    text: tens ? powers(ticks) : ticks.map((v) => show(found ? 10 ** v : v, 2)), value: (v) => (v === null ? "not finite" : show(found ? 10 ** v : v, 3)),
  };
}

function heatOf(plot) {
  const { heat } = plot, { name, low, high, ticks, text, value } = rampOf(plot);
  return {
    type: "heatmap", x: edges(heat.x, plot.x.log), y: edges(heat.y, plot.y.log), z: heat.z, zmin: low, zmax: high,
    colorscale: VIRIDIS.map((c, i) => [i / (VIRIDIS.length - 1), c]), showscale: false,
    hoverinfo: "text", showlegend: false, name: literal(name),
    hovertext: heat.z.map((row, j) => row.map((v, i) => `<b>${literal(name)}: ${value(v)}</b><br>${literal(plot.y.title)}: ${plot.y.names ? literal(plot.y.names[j]) : show(heat.y[j])}<br>${literal(plot.x.title)}: ${show(heat.x[i])}`)),
    colorbar: { title: { text: literal(name), side: "right" }, thickness: 12, outlinewidth: 0, tickmode: "array", tickvals: ticks, ticktext: text },
  };
}

function layoutOf(plot, element, ranges = {}) {
  return {
    autosize: true, showlegend: false, dragmode: fine.matches ? "zoom" : false, hovermode: "closest", hoverdistance: 24,
    margin: { l: 4, r: 14, t: 10, b: 4, pad: plot.heat ? 0 : 3 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: plot.heat ? colour("sunk") : "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("rule"), font: { color: colour("ink"), size: 12.5 }, align: "left", namelength: -1 },
    xaxis: axisOf(plot, "x", element, ranges.x), yaxis: axisOf(plot, "y", element, ranges.y),
  };
}

function tracesOf(plot) {
  const order = [...plot.lines.keys()].sort((a, b) => (plot.lines[a].style === "markers") - (plot.lines[b].style === "markers")); // markers on top
  return [...(plot.heat ? [heatOf(plot)] : []), ...order.flatMap((k) => traceOf(plot, k))];
}

/* --- drawing, when a figure comes into view --- */

const fine = matchMedia("(pointer: fine)");
const elements = [...document.querySelectorAll(".plot")];
const drawn = new Set();
let ready = null;

/** Plotly lies in the page compressed, to be unpacked once, when the first figure is near. */
function unpack() {
  ready ??= (async () => {
    const text = atob(document.getElementById("plotly").textContent), packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Response(packed).body.pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("plotly.js did not start");
  })();
  return ready;
}

function draw(k) {
  const element = elements[k], plot = plots[k];
  Plotly.react(element, tracesOf(plot), layoutOf(plot, element), { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false });
  if (drawn.has(k)) return;
  drawn.add(k);
  element.on("plotly_relayout", (change) => retick(k, change));
  root.dataset.drawn = drawn.size;
}

/** New ticks for the range that the reader zoomed to. */
function retick(k, change) {
  if (change.ticked || !Object.keys(change).some((key) => /axis\.(range|autorange)|autosize/.test(key))) return;
  const element = elements[k], update = {};
  for (const axis of ["x", "y"]) {
    const now = element.layout[`${axis}axis`];
    const asked = Object.keys(change).some((key) => key.startsWith(`${axis}axis.`));
    if (!plots[k][axis].log || !(asked || change.autosize)) continue;
    const { tickmode, tickvals, ticktext, minor } = axisOf(plots[k], axis, element, change[`${axis}axis.autorange`] ? undefined : [...now.range]);
    Object.assign(update, { [`${axis}axis.tickmode`]: tickmode, [`${axis}axis.tickvals`]: tickvals ?? null, [`${axis}axis.ticktext`]: ticktext ?? null, [`${axis}axis.minor.tickvals`]: minor.tickvals ?? null });
  }
  if (Object.keys(update).length) Plotly.relayout(element, { ...update });
}

async function reveal(k) {
  try {
    await unpack();
    draw(k);
  } catch (error) {
    elements[k].classList.add("failed");
    elements[k].textContent = "This browser could not draw the figure; its numbers are below.";
    console.error(error);
  }
}

function redraw() {
  for (const k of drawn) draw(k);
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) {
    near.unobserve(entry.target);
    reveal(elements.indexOf(entry.target));
  }
}, { rootMargin: "600px 0px" });

elements.forEach((element, k) => {
  if (plots[k].heat) element.classList.add("heat");
  near.observe(element);
});
let worn; // the theme to come back to: paper is light
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details.bearing")) folded.open = true;
  worn = root.dataset.theme;
  root.dataset.theme = "light";
  if (window.Plotly) elements.forEach((_, k) => draw(k));
});
addEventListener("afterprint", () => {
  if (worn) root.dataset.theme = worn;
  else delete root.dataset.theme;
  redraw();
});
if (plots.length) (window.requestIdleCallback ?? setTimeout)(() => unpack().catch(() => {}));

/* --- keys: the legend, as buttons that show and hide --- */

function swatch(plot, k) {
  const line = plot.lines[k], tint = plot.heat ? "#fff" : plot.colours[k] ? `var(--c${plot.colours[k]})` : "var(--predicted)";
  const ground = plot.heat ? `<rect width="28" height="14" fill="#3b528b"/>` : "";
  const open = plot.symbols[k].endsWith("-open"), shapes = { circle: `<circle cx="14" cy="7" r="4.5"/>`, square: `<rect x="10" y="3" width="8" height="8"/>`, diamond: `<path d="M14 1.500l5.5 5.5-5.5 5.500L8.5 7z"/>`, "triangle-up": `<path d="M14 2l5.2 9H8.800z"/>`, "triangle-down": `<path d="M14 12L8.8 3h10.400z"/>`, cross: `<path d="M12 2h4v3h3v4h-3v3h-4V9H9V5h3z"/>`, star: `<path d="M14 1l1.8 4 4.2.4-3.2 2.9 1 4.200L14 10.300l-3.8 2.2 1-4.200L8 5.4 12.2 5z"/>` };
  const stroke = (wide, paint, dash = "") => `<line x1="1" x2="27" y1="7" y2="7" stroke="${paint}" stroke-width="${wide}" ${dash}/>`;
  const mark = line.style === "markers" ? `<g ${open ? `fill="none" stroke-width="1.6" stroke` : "fill"}="${tint}">${shapes[plot.symbols[k].replace("-open", "")]}</g>`
    : (plot.heat ? stroke(6, "#10131a") : "") + stroke(2.2, tint, line.style === "dash" ? 'stroke-dasharray="6 4"' : "");
  return `<svg aria-hidden="true" width="28" height="14">${ground}${mark}</svg>`;
}

document.querySelectorAll("figure.panel").forEach((figure, n) => {
  const plot = plots[n], keys = figure.querySelector(".keys");
  if (plot.heat) keys.append(rampElement(plot));
  plot.lines.forEach((line, k) => {
    if (!line.name) return;
    const button = document.createElement("button");
    button.type = "button";
    button.ariaPressed = "true";
    button.innerHTML = swatch(plot, k);
    button.append(line.name);
    button.addEventListener("click", async () => {
      const shown = plot.hidden.delete(k) || !plot.hidden.add(k);
      button.ariaPressed = String(shown);
      await unpack();
      draw(n);
    });
    keys.append(button);
  });
  if (!keys.querySelector("button")) keys.removeAttribute("role"), keys.removeAttribute("aria-label");
  figure.querySelector(".notes").textContent = notesOf(plot).join(" ");
});

/** The colour bar, in the page's own type. */
function rampElement(plot) {
  const { name, low, high, ticks, text } = rampOf(plot), ramp = document.createElement("div"), bar = document.createElement("span");
  ramp.className = "ramp";
  ramp.ariaHidden = "true";
  ramp.append(name, bar);
  bar.style.background = `linear-gradient(to right, ${VIRIDIS.join(", ")})`;
  ticks.forEach((v, i) => {
    const tick = document.createElement("span");
    tick.innerHTML = text[i]; // digits, a sign and <sup> alone
    tick.style.left = `${(100 * (v - low)) / (high - low)}%`;
    bar.append(tick);
  });
  return ramp;
}

/** What the figure cannot show: values that a log axis has no place for, and cells that are not finite. */
function notesOf(plot) {
  const notes = [];
  const lost = plot.lines.reduce((sum, line) => sum + line.x.filter((x, i) => (plot.x.log && x !== null && x <= 0) || (plot.y.log && line.y[i] !== null && line.y[i] <= 0)).length, 0);
  if (lost) notes.push(`${lost} ${lost === 1 ? "value" : "values"} at or below 0 ${lost === 1 ? "has" : "have"} no place on a log axis.`);
  if (plot.heat?.z.some((row) => row.includes(null))) notes.push(plot.blank ?? "Blank cells: the run did not stay finite.");
  return notes;
}
