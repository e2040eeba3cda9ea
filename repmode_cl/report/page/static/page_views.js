// Charts, heat maps and bars of gates: which of those drawn are visible, and the values where a reader points.
const stored = new Map(); // "kind view" -> nodes of a view that was visible before

// Put a view into its place; false where the page has none.
function putView(where, kind, view) {
  if (where.dataset.view === view) return true;
  const template = document.querySelector(`template[data-kind="${kind}"][data-view="${CSS.escape(view)}"]`);
  const nodes = stored.get(`${kind} ${view}`) ?? (template && [...template.content.childNodes]);
  stored.set(`${kind} ${where.dataset.view}`, [...where.childNodes]);
  where.dataset.view = view;
  where.replaceChildren(...(nodes ?? []));
  return Boolean(nodes);
}

const isVisible = (element) => !element.closest("[hidden]");

// Hide what is not chosen: elements of other strategies and structures.
function showChosen(where) {
  for (const element of where.querySelectorAll("[data-strategy]")) {
    element.toggleAttribute("hidden", !chosen.strategies.has(Number(element.dataset.strategy)));
  }
  for (const element of where.querySelectorAll("[data-structure]")) {
    element.hidden = !isStructureChosen(element.dataset.structure);
  }
}

function sayNothing(where, isEmpty, text) {
  where.querySelector(":scope > .empty")?.remove();
  if (isEmpty) where.append(nothing(text));
}

function showCharts(kind, metric, reason) {
  const where = place(kind);
  if (!where) return;
  putView(where, kind, `${stream().name}|${metric}`);
  showChosen(where);
  const figures = [...where.querySelectorAll("figure")];
  for (const figure of figures) {
    figure.hidden ||= ![...figure.querySelectorAll("[data-strategy]")].some((line) => !line.hasAttribute("hidden"));
  }
  const visible = figures.filter((figure) => !figure.hidden);
  where.querySelector(".charts")?.classList.toggle("one", visible.length === 1);
  fitFrame(where.querySelector(".charts"), visible);
  sayNothing(where, !visible.length, chosen.strategies.size ? reason : "No strategy is chosen.");
}

// The numbers of a line, which is drawn in the units of the data: [x, mean, lowest, highest].
function pointsOf(line) {
  const pairs = (element, name) => [...(element?.getAttribute(name) ?? "").matchAll(/([-+.\de]+)[ ,]([-+.\de]+)/g)]
    .map(([, x, y]) => [Number(x), Number(y)]);
  const band = pairs(line.querySelector(".band"), "points");
  const high = new Map(band.slice(0, band.length / 2));
  const low = new Map(band.slice(band.length / 2));
  return pairs(line.querySelector(".line"), "d").map(([x, mean]) => [x, mean, low.get(x) ?? mean, high.get(x) ?? mean]);
}

const visibleLines = (figure) => [...figure.querySelectorAll("g[data-strategy]")].filter(isVisible);

function niceTicks(low, high, count = 4) {
  const span = high - low;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const off = (step) => Math.abs(span / step - count);
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).reduce((a, b) => (off(b) < off(a) ? b : a));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k += 1) ticks.push(k * step);
  return ticks;
}

// Scale all charts of a view to the lines that are visible, within the axis that was drawn for all strategies.
function fitFrame(charts, figures) {
  if (!charts || !figures.length) return;
  const { top, bottom, left, right, padding } = { top: 10, bottom: 152, left: 46, right: 258, padding: 5 }; // as in svg.py
  let [low, high] = [Number(charts.dataset.low), Number(charts.dataset.high)];
  const values = figures.flatMap((figure) => visibleLines(figure).flatMap((line) => pointsOf(line).flatMap((point) => point.slice(1))));
  if (figures.some((figure) => figure.querySelector("g[data-strategy][hidden]")) && values.length) {
    const [least, most] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [high, low]);
    const margin = 0.05 * Math.max(most - least, 0.05);
    [low, high] = [Math.max(low, least - margin), Math.min(high, most + margin)];
  }
  if (!(high > low)) return;
  const unit = (high - low) / (bottom - top);
  const y = (value) => bottom - (value - low) / unit;
  const ticks = niceTicks(low, high);
  const digits = Math.max(0, ...ticks.map((tick) => (tick.toFixed(3).replace(/0+$/, "").split(".")[1] ?? "").length));
  for (const figure of figures) {
    const box = figure.querySelector("svg.lines").viewBox.baseVal;
    box.y = -(high + padding * unit);
    box.height = high - low + 2 * padding * unit;
    figure.querySelector(".y-axis").replaceChildren(...ticks.flatMap((tick) => [
      make("line", { class: tick === 0 && low < 0 ? "zero" : "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
      make("text", { class: "tick", x: left - 6, y: y(tick) + 3.5, "text-anchor": "end" }, number(tick, digits)),
    ]));
  }
}

function showMaps() {
  const where = place("maps");
  if (!where) return;
  putView(where, "maps", `${stream().name}|${chosen.metric}`);
  showChosen(where);
  const maps = where.querySelector(".maps");
  const names = [...(maps?.querySelector("thead tr")?.cells ?? [])].slice(1).map((cell) => cell.dataset.structure);
  const count = names.filter(isStructureChosen).length;
  maps?.style.setProperty("--structures", Math.max(count, 2));
  maps?.classList.toggle("many", count > 6);
  for (const row of where.querySelectorAll("tr")) names.forEach((name, k) => { row.cells[k + 1].hidden = !isStructureChosen(name); });
  const visible = [...where.querySelectorAll("figure")].some((figure) => !figure.hidden);
  sayNothing(where, !visible, "Nothing to show of what is chosen.");
}

function showGates() {
  for (const select of document.querySelectorAll("select[data-column]")) {
    const where = document.querySelector(`.gate-place[data-column="${select.dataset.column}"]`);
    const template = document.querySelector(`template[data-kind="gates"][data-view="${CSS.escape(select.value)}"]`);
    where.replaceChildren(template.content.cloneNode(true));
    showChosen(where);
    for (const bars of where.querySelectorAll("[data-strategy]")) {
      bars.hidden ||= ![...bars.querySelectorAll("[data-structure]")].some((bar) => !bar.hidden);
    }
    const visible = [...where.children].some((bars) => !bars.hidden);
    sayNothing(where, !visible, "None of what is chosen has gates in this block.");
  }
}

// All matrices of the stream and metric on view: rows of [strategy, step, structure, its values].
function matrices() {
  return [...place("maps").querySelectorAll("figure")].map((figure) => {
    const [head, ...rows] = figure.querySelectorAll("thead tr, tbody tr");
    return {
      strategy: DATA.strategies[figure.dataset.strategy],
      structures: [...head.cells].slice(1).map((cell) => cell.dataset.structure),
      rows: rows.map((row) => [row.cells[0].textContent, ...[...row.cells].slice(1).map((cell) => cell.dataset.values?.split(" ") ?? [])]),
    };
  });
}

function matrixCsv() {
  const lines = matrices().flatMap(({ strategy, structures, rows }) => rows.flatMap(([, ...cells], step) =>
    cells.map(([mean, low, high], k) => mean && [strategy, step, structures[k], chosen.metric, mean, low ?? mean, high ?? mean].join(","))));
  return ["strategy,step,structure,metric,mean,lowest,highest", ...lines.filter(Boolean)].join("\n") + "\n";
}

const latexText = (text) => String(text).replace(/[&%$#_{}]/g, "\\$&").replaceAll("²", "$^2$");

function matrixLatex() {
  return matrices().map(({ strategy, structures, rows }) => [
    `% ${strategy}, ${DATA.metrics[chosen.metric]}`,
    `\\begin{tabular}{l${"r".repeat(structures.length)}}`, "\\toprule",
    `after step & ${structures.map((name) => latexText(readable(name))).join(" & ")} \\\\`, "\\midrule",
    ...rows.map(([label, ...cells]) => `${latexText(label)} & ${cells.map(([mean]) => (mean ? `$${Number(mean).toFixed(3)}$` : "")).join(" & ")} \\\\`),
    "\\bottomrule", "\\end{tabular}", "",
  ].join("\n")).join("\n");
}

// The values of all visible lines where a reader points in a chart, and of a cell of a heat map.
const cursor = make("line", { class: "cursor" });

function pointAtChart(event, svg) {
  const group = svg.querySelector(".lines > g");
  const screen = group.getScreenCTM();
  const x = (event.clientX - screen.e) / screen.a;
  const lines = visibleLines(svg).map((line) => [Number(line.dataset.strategy), pointsOf(line)]);
  const every = lines.flatMap(([, points]) => points.map((point) => point[0]));
  if (!every.length) return;
  const nearest = every.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
  const box = svg.querySelector(".lines").viewBox.baseVal;
  for (const [name, value] of Object.entries({ x1: nearest, x2: nearest, y1: -box.y, y2: -box.y - box.height })) cursor.setAttribute(name, value);
  group.append(cursor);
  const here = lines.map(([strategy, points]) => [strategy, points.find((point) => point[0] === nearest)])
    .filter(([, point]) => point).sort(([, a], [, b]) => b[1] - a[1]);
  showTip(event, make("div", {}, `${svg.querySelector(".lines").dataset.x} ${nearest}`), ...here.map(([strategy, [, mean, low, high]]) =>
    make("div", {}, keyOf(strategy), `${DATA.strategies[strategy]} `, make("b", {}, number(mean)),
      low < high ? ` (${number(low)} to ${number(high)})` : "")));
}

document.addEventListener("pointermove", (event) => {
  const svg = event.target.closest?.("svg.chart");
  const cell = event.target.closest?.("td[data-values]");
  cursor.remove();
  if (svg) pointAtChart(event, svg);
  else if (cell) {
    const [mean, low, high] = cell.dataset.values.split(" ").map(Number);
    showTip(event, make("div", {}, make("b", {}, number(mean, 4)), low < high ? ` (${number(low, 4)} to ${number(high, 4)})` : ""));
  } else if (!event.target.closest?.("canvas")) hideTip();
});
// The tips above have more than a browser shows of a title.
for (const root of [document, ...[...document.querySelectorAll("template")].map((template) => template.content)]) {
  for (const title of root.querySelectorAll(".lines title")) title.remove();
}
