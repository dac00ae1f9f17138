/* --- numbers of a figure: a table, a CSV file, an SVG file --- */

/** Header and rows: side by side where the series share most x, one below the other where they do not. */
function tableOf(plot) {
  if (plot.heat) {
    const { heat } = plot;
    return { head: [`${plot.y.title} ↓ · ${plot.x.title} →`, ...heat.x], rows: heat.y.map((v, j) => [plot.y.names?.[j] ?? v, ...heat.z[j]]), note: heat.title };
  }
  const xs = [...new Set(plot.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const longest = Math.max(0, ...plot.lines.map((line) => line.x.length));
  if (xs.length <= 1.5 * longest) {
    const head = [plot.x.title], columns = [];
    for (const line of plot.lines) {
      const at = new Map(line.x.map((x, i) => [x, i]));
      head.push(line.name || plot.y.title);
      columns.push((x) => (at.has(x) ? line.y[at.get(x)] : ""));
      if (line.error) head.push("±"), columns.push((x) => (at.has(x) ? line.error[at.get(x)] : ""));
    }
    return { head, rows: xs.map((x) => [x, ...columns.map((column) => column(x))]), note: plot.y.title };
  }
  return { head: ["series", plot.x.title, plot.y.title, "±"], rows: plot.lines.flatMap((line) => line.x.map((x, i) => [line.name, x, line.y[i], line.error?.[i] ?? ""])), note: "" };
}

const MOST = 200;
function fill(container, plot) {
  const { head, rows, note } = tableOf(plot), table = document.createElement("table");
  const caption = table.createCaption();
  caption.textContent = [note, rows.length > MOST ? `the first ${MOST} of ${rows.length} rows; the CSV file has all` : ""].filter(Boolean).join("; ");
  const cell = (row, kind, content) => {
    const made = document.createElement(kind);
    made.textContent = typeof content === "number" || content === null ? show(content, 5) : content;
    if (typeof content === "number" || content === null) made.className = "num";
    row.append(made);
    return made;
  };
  const top = table.createTHead().insertRow();
  head.forEach((name) => { const made = cell(top, "th", name); made.scope = "col"; made.className = "num"; });
  const body = table.createTBody();
  for (const values of rows.slice(0, MOST)) {
    const row = body.insertRow();
    values.forEach((value, i) => { const made = cell(row, i ? "td" : "th", value); if (!i) made.scope = "row"; });
  }
  container.replaceChildren(table);
}

function csvOf({ head, rows }) {
  const cell = (value) => {
    if (value === null) return "nan";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value; // no spreadsheet takes a name for a formula
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function save(name, kind, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function svgOf(k) {
  await unpack();
  const plot = plots[k], size = { clientWidth: 760, clientHeight: plot.heat ? 560 : 440 }, layout = layoutOf(plot, size);
  const title = (text, standoff) => ({ text: literal(text), font: { size: 14, color: colour("ink") }, standoff });
  layout.xaxis.title = title(plot.x.title, 12);
  layout.yaxis.title = title(plot.y.title, 12);
  if (plot.title) layout.title = { text: literal(plot.title), font: { size: 16 }, x: 0.02, xanchor: "left" };
  Object.assign(layout, { paper_bgcolor: colour("paper"), showlegend: true, legend: { orientation: "h", x: 0, y: -0.2, yanchor: "top", ...(plot.heat ? { bgcolor: VIRIDIS[2], font: { color: "#fff" } } : {}) }, margin: { l: 10, r: 20, t: 54, b: 10 } });
  const data = tracesOf(plot).map((trace) => (trace.type === "heatmap" ? { ...trace, showscale: true } : trace));
  const url = await Plotly.toImage({ data, layout }, { format: "svg", width: size.clientWidth, height: size.clientHeight + 80 });
  return decodeURIComponent(url.slice(url.indexOf(",") + 1));
}

document.querySelectorAll("figure.panel").forEach((figure, k) => {
  figure.querySelector(".tools").hidden = false;
  const numbers = figure.querySelector(".numbers");
  numbers.addEventListener("toggle", () => { if (numbers.open) fill(numbers.querySelector(".scroll"), plots[k]); });
  figure.querySelector('[data-save="csv"]').addEventListener("click", () => save(`${plots[k].file}.csv`, "text/csv", csvOf(tableOf(plots[k]))));
  figure.querySelector('[data-save="svg"]').addEventListener("click", async () => save(`${plots[k].file}.svg`, "image/svg+xml", await svgOf(k)));
});

const tables = JSON.parse(document.getElementById("tables").textContent);
document.querySelectorAll("figure.tabled").forEach((figure, k) => {
  figure.querySelector(".tools").hidden = false;
  figure.querySelector('[data-save="csv"]').addEventListener("click", () => save(`${tables[k].file}.csv`, "text/csv", csvOf(tables[k])));
});

/* --- light and dark --- */

const system = matchMedia("(prefers-color-scheme: dark)");
const toggle = document.getElementById("theme");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

function themed() {
  toggle.querySelector("span").textContent = isDark() ? "Light mode" : "Dark mode";
  redraw();
}
try { // a browser may refuse a file its storage
  const kept = localStorage.getItem("nonsmooth-theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
} catch { /* the system's choice stands */ }
toggle.hidden = false;
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("nonsmooth-theme", root.dataset.theme); } catch { /* for this visit only */ }
  themed();
});
system.addEventListener("change", themed);
themed();

/* --- commands to copy --- */

const told = document.getElementById("told");
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  const label = button.innerHTML;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = told.textContent = "Copied";
    } catch { // no right to the clipboard: leave the command selected
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = told.textContent = "Selected";
    }
    setTimeout(() => { button.innerHTML = label; told.textContent = ""; }, 1600);
  });
}

/* --- where the reader is --- */

const marks = new Map([...document.querySelectorAll(".contents a")].map((a) => [a.hash.slice(1), a]));
const places = [...document.querySelectorAll(".place")];
const inView = new Set();
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.isIntersecting ? inView.add(entry.target) : inView.delete(entry.target);
  const current = places.find((place) => inView.has(place));
  for (const [id, link] of marks) {
    if (current?.id === id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const link = current && marks.get(current.id), list = document.querySelector(".contents");
  if (link && (link.offsetTop < list.scrollTop + 40 || link.offsetTop > list.scrollTop + list.clientHeight - 60)) list.scrollTop = link.offsetTop - list.clientHeight / 2;
}, { rootMargin: "-110px 0px -55% 0px" });
places.forEach((place) => watch.observe(place));
