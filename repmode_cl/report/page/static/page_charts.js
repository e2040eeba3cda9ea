// Line charts, drawn as charts.py draws them, of the strategies and structures that are chosen.
const FRAME = { width: 270, height: 178, left: 46, right: 12, top: 10, bottom: 26 };
const DOTS = 16; // beside lines of more points none is drawn with dots, but for one that is a dot

function niceTicks(low, high, count = 4) {
  const span = high - low;
  if (!Number.isFinite(span) || span <= 0) return [low];
  const power = 10 ** Math.floor(Math.log10(span / count));
  const off = (step) => Math.abs(span / step - count);
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).reduce((a, b) => (off(b) < off(a) ? b : a));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k += 1) ticks.push(k * step);
  return ticks;
}

// Each point is [x, mean] or [x, mean, lowest, highest].
function rangeOf(lines, metric, [lowest, highest]) {
  const values = lines.flatMap((line) => line.points.flatMap((point) => point.slice(1))).filter(Number.isFinite);
  if (!values.length) return [0, 1];
  let low = values.reduce((a, b) => Math.min(a, b));
  let high = values.reduce((a, b) => Math.max(a, b));
  if (lowest !== null) low = Math.max(low, lowest);
  if (highest !== null) high = Math.min(high, highest);
  if (DATA.metrics[metric].higher && low < 0.5) low = Math.min(low, 0);
  high = Math.max(high, low + 0.05);
  const margin = 0.05 * (high - low);
  return [low - margin, high + margin];
}

function lineChart({ lines, xRange, yRange, xTicks, description, fromX = null, xName, dots }) {
  const { width, height, left, right, top, bottom } = FRAME;
  const px = (x) => left + ((x - xRange[0]) / (xRange[1] - xRange[0] || 1)) * (width - left - right);
  const py = (y) => height - bottom - ((y - yRange[0]) / (yRange[1] - yRange[0] || 1)) * (height - top - bottom);
  const at = (x, y) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
  const svg = make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": description });
  const ticks = niceTicks(...yRange);
  const decimals = (tick) => (tick.toFixed(3).replace(/0+$/, "").split(".")[1] ?? "").length;
  const digits = Math.max(...ticks.map(decimals));
  for (const tick of ticks) {
    const kind = tick === 0 && yRange[0] < 0 ? "zero" : "grid";
    svg.append(make("line", { class: kind, x1: left, x2: width - right, y1: py(tick), y2: py(tick) }));
    svg.append(make("text", { class: "tick", x: left - 6, y: py(tick) + 3.5, "text-anchor": "end" }, number(tick, digits)));
  }
  xTicks.forEach(([x, label], k) => {
    const last = k === xTicks.length - 1 && px(x) > width - right - 12 && label.length > 2;
    svg.append(make("text", { class: "tick", x: px(x), y: height - bottom + 15, "text-anchor": last ? "end" : "middle" }, label));
  });
  if (fromX !== null && fromX > xRange[0] && fromX <= xRange[1]) {
    svg.append(make("line", { class: "from", x1: px(fromX), x2: px(fromX), y1: top, y2: height - bottom }));
  }
  // A nested svg cuts off what leaves the frame.
  const tall = height - top - bottom + 8;
  const inner = make("svg", { x: 0, y: top - 4, width, height: tall, viewBox: `0 ${top - 4} ${width} ${tall}` });
  for (const line of lines) {
    const band = line.points.filter((point) => point[1] !== null);
    if (band.length > 1 && band.some((point) => point.length > 2)) {
      const there = band.map((p) => at(p[0], p[3] ?? p[1]));
      const back = band.map((p) => at(p[0], p[2] ?? p[1])).reverse();
      inner.append(make("polygon", { class: `band ${styleOf(line.style)}`, points: [...there, ...back].join(" ") }));
    }
  }
  for (const line of lines) {
    let path = "";
    let pen = "M";
    for (const [x, y] of line.points) {
      if (y !== null) path += `${pen}${at(x, y)}`;
      pen = y === null ? "M" : "L";
    }
    inner.append(make("path", { class: `line ${styleOf(line.style)}`, d: path }));
    for (const [x, y] of dots || line.points.length === 1 ? line.points : []) {
      if (y !== null) inner.append(make("circle", { class: `dot ${styleOf(line.style)}`, cx: px(x), cy: py(y), r: 3 }));
    }
  }
  const cursor = make("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  svg.append(inner, cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const every = lines.flatMap((line) => line.points.filter((point) => point[1] !== null).map((point) => point[0]));
    if (!every.length) return;
    const nearest = every.reduce((a, b) => (Math.abs(px(b) - x) < Math.abs(px(a) - x) ? b : a));
    cursor.setAttribute("x1", px(nearest));
    cursor.setAttribute("x2", px(nearest));
    cursor.setAttribute("visibility", "visible");
    const here = lines
      .map((line) => [line, line.points.find((point) => point[0] === nearest && point[1] !== null)])
      .filter(([, point]) => point)
      .sort(([, a], [, b]) => b[1] - a[1]);
    const text = ([line, point]) => make("div", {}, keyOf(line.style), `${line.label} `, make("b", {}, number(point[1])),
      point.length > 2 ? ` (${number(point[2])} to ${number(point[3])})` : "");
    showTip(event, make("div", {}, `${xName} ${nearest}`), ...here.map(text));
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  });
  return svg;
}

function drawCharts(where, figures, metric, ends, empty) {
  const all = figures.flatMap((figure) => figure.lines);
  const yRange = rangeOf(all, metric, ends);
  const dots = all.every((line) => line.points.length <= DOTS);
  where.classList.toggle("one", figures.length === 1);
  where.replaceChildren(...(all.length ? figures : []).map((figure) =>
    make("figure", { "data-structure": figure.structure }, make("figcaption", {}, spoken(figure.structure)), lineChart({ ...figure, yRange, dots }))));
  if (!all.length) where.append(nothing(empty));
}

function drawForgetting() {
  const where = place("forgetting-charts");
  if (!where) return;
  const { steps, structures, matrices } = stream();
  const found = matrices[chosen.metric]?.strategies ?? {};
  const last = steps.length - 1;
  const figures = [];
  structures.forEach((name, column) => {
    const step = steps.findIndex((names) => names.includes(name));
    if (step >= last || !shownStructure(name)) return;
    const lines = [...chosen.strategies].filter((k) => found[k]).sort((a, b) => b - a).map((k) => {
      const { mean, low, high } = found[k];
      const points = mean.map((row, x) => (low && low[x][column] !== high[x][column]
        ? [x, row[column], low[x][column], high[x][column]] : [x, row[column]])).filter((point) => point[1] !== null);
      return { style: k, label: DATA.strategies[k], points };
    });
    figures.push({
      structure: name, lines, fromX: step, xRange: [0, Math.max(last, 1)], xName: "after step",
      xTicks: steps.map((_, k) => [k, String(k)]),
      description: `${DATA.metrics[chosen.metric].name} of ${spoken(name)} after each step`,
    });
  });
  drawCharts(where, figures, chosen.metric, DATA.metrics[chosen.metric].forgetting, chosen.strategies.size
    ? "Nothing to show: what is learned in the last step cannot be forgotten." : "No strategy is chosen.");
}

function drawLearning() {
  const where = place("learning-charts");
  if (!where) return;
  const { curves } = stream();
  const metric = curves[chosen.metric] ? chosen.metric : Object.keys(curves)[0];
  const figures = Object.entries(curves[metric] ?? {}).filter(([name]) => shownStructure(name)).map(([name, found]) => {
    const lines = [...chosen.strategies].filter((k) => found[k]).sort((a, b) => b - a)
      .map((k) => ({ style: k, label: DATA.strategies[k], points: found[k] }));
    const end = Math.max(1, ...lines.flatMap((line) => line.points.map((point) => point[0])));
    return {
      structure: name, lines, xRange: [0, end], xName: "step", xTicks: niceTicks(0, end, 3).map((x) => [x, String(x)]),
      description: `validation ${DATA.metrics[metric].name} of ${spoken(name)} while it is learned`,
    };
  }).filter((figure) => figure.lines.length);
  drawCharts(where, figures, metric, DATA.metrics[metric]?.learning ?? [null, null], "No validation figures of what is chosen.");
}
