// Heat maps of every structure after every step, and bars of gate weights.
const RAMP = [[0, [252, 243, 219]], [0.35, [186, 214, 186]], [0.7, [66, 145, 143]], [1, [18, 74, 98]]];

const MANY = 6; // more columns are narrow

function heatStyle(value, [worst, best]) {
  const span = best - worst;
  const t = span ? Math.min(1, Math.max(0, (value - worst) / span)) : 1;
  const upper = Math.max(1, RAMP.findIndex(([end]) => t <= end));
  const [[t0, from], [t1, to]] = [RAMP[upper - 1], RAMP[upper]];
  const mixed = from.map((a, k) => Math.round(a + ((t - t0) / (t1 - t0)) * (to[k] - a)));
  const dark = 0.2126 * mixed[0] + 0.7152 * mixed[1] + 0.0722 * mixed[2] > 132;
  return `background:rgb(${mixed});color:${dark ? "#14242b" : "#fff"}`;
}

function stepLabel(names, step) {
  if (step === 0) return names.length > 1 ? "0: base" : `0: ${spoken(names[0])}`;
  return `${step}: + ${names.map(spoken).join(", ")}`;
}

function lostText(value, digits) {
  if (value === null) return "";
  return value === 0 ? "0.0" : `${value > 0 && digits > 2 ? "+" : ""}${number(value, digits)}`;
}

function heatMap(strategy, { seeds, mean, lost }, scale) {
  const { steps, structures } = stream();
  const columns = [...structures.keys()].filter((k) => shownStructure(structures[k]));
  const digits = columns.length > MANY ? 2 : 3;
  const cell = (value) => (value === null ? make("td") : make("td", { style: heatStyle(value, scale), title: number(value, 4) }, number(value, digits)));
  const head = make("tr", {}, make("th", {}, "after step"), ...columns.map((k) => make("th", { scope: "col" }, make("span", {}, spoken(structures[k])))));
  const rows = steps.map((names, step) =>
    make("tr", {}, make("th", { scope: "row" }, stepLabel(names, step)), ...columns.map((k) => cell(mean[step][k]))));
  const foot = make("tr", {}, make("th", { scope: "row" }, "forgotten"), ...columns.map((k) => make("td", {}, lostText(lost[k], digits))));
  const name = DATA.metrics[chosen.metric].name;
  return make("figure", { class: "wide", "data-strategy": strategy },
    make("figcaption", {}, keyOf(strategy), `${DATA.strategies[strategy]} `, make("span", {}, seeds > 1 ? `${name}, mean over ${seeds} seeds` : name)),
    make("table", { class: "heat" }, make("thead", {}, head), make("tbody", {}, ...rows), steps.length > 1 ? make("tfoot", {}, foot) : null));
}

function drawMaps() {
  const where = place("maps");
  if (!where) return;
  const { structures, matrices } = stream();
  const { scale, strategies } = matrices[chosen.metric];
  const count = chosen.structure ? 1 : structures.length;
  where.style.setProperty("--structures", Math.max(count, 2));
  where.classList.toggle("many", count > MANY);
  const shown = [...chosen.strategies].filter((k) => strategies[k]).sort((a, b) => a - b);
  where.replaceChildren(...shown.map((k) => heatMap(k, strategies[k], scale)));
  if (!shown.length) where.append(nothing("Nothing to show of what is chosen."));
}

// All matrices of the stream and metric on view, with every digit that the page has.
function matrixRows() {
  const { steps, structures, matrices } = stream();
  const { strategies } = matrices[chosen.metric];
  return Object.entries(strategies).flatMap(([k, { mean, low, high }]) => steps.flatMap((_, step) =>
    structures.map((name, column) => [DATA.strategies[k], step, name, chosen.metric, mean[step][column],
      (low ?? mean)[step][column], (high ?? mean)[step][column]]).filter((row) => row[4] !== null)));
}

const matrixCsv = () => ["strategy,step,structure,metric,mean,lowest,highest", ...matrixRows().map((row) => row.join(","))].join("\n") + "\n";

const latexText = (text) => String(text).replace(/[&%$#_{}]/g, "\\$&").replaceAll("²", "$^2$");

function matrixLatex() {
  const { steps, structures, matrices } = stream();
  return Object.entries(matrices[chosen.metric].strategies).map(([k, { mean }]) => [
    `% ${DATA.strategies[k]}, ${DATA.metrics[chosen.metric].name}`,
    `\\begin{tabular}{l${"r".repeat(structures.length)}}`, "\\toprule",
    `after step & ${structures.map((name) => latexText(spoken(name))).join(" & ")} \\\\`, "\\midrule",
    ...steps.map((names, step) => `${latexText(stepLabel(names, step))} & ${mean[step].map((value) => (value === null ? "" : `$${value.toFixed(3)}$`)).join(" & ")} \\\\`),
    "\\bottomrule", "\\end{tabular}", "",
  ].join("\n")).join("\n");
}

function drawGates() {
  for (const select of document.querySelectorAll("select[data-column]")) {
    const { experts, shares } = DATA.gates;
    const bars = [];
    DATA.strategies.forEach((title, strategy) => {
      const rows = Object.entries(shares[title] ?? {}).filter(([name, blocks]) => shownStructure(name) && blocks[select.value]);
      if (!rows.length || !chosen.strategies.has(strategy)) return;
      bars.push(make("h4", {}, title), make("div", { class: "bars" }, ...rows.flatMap(([name, blocks]) => [
        make("span", { class: "of" }, spoken(name)),
        make("div", { class: "bar" }, ...blocks[select.value].map((share, k) => make("span", {
          class: `part ${k < experts.length ? `e${k}` : "efresh"}`, style: `width:${share}%`,
          title: `${experts[k] ?? "fresh expert"}: ${share} %`,
        }, share >= 7 ? share.toFixed(0) : ""))),
      ])));
    });
    const where = document.querySelector(`.gate-place[data-column="${select.dataset.column}"]`);
    where.replaceChildren(...(bars.length ? bars : [nothing("None of what is chosen has gates in this block.")]));
  }
}
