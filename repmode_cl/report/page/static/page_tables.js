// Tables: of the scope and metric chosen, sorted as the reader wants, without the rows that are not chosen.
const sorting = new Map(); // kind -> [column, direction]

const tableKey = (kind) => [`${kind}|${chosen.scope}|${chosen.metric}`, `${kind}|${chosen.scope}|`].find((key) => key in DATA.tables);
const AVERAGED = ["comparisons", "budgets", "paper", "paper_orders"]; // have rows of averages, and rows of each structure

function isChosen(kind, row, rows) {
  if (!row.of.every((k) => chosen.strategies.has(k))) return false;
  const averaged = AVERAGED.includes(kind) && rows.some((one) => !one.structure);
  return averaged ? row.structure === chosen.structure : !row.structure || isStructureChosen(row.structure);
}

function compareCells(column, direction) {
  const value = (row) => row.cells[column][2];
  return (a, b) => {
    const [x, y] = [value(a), value(b)];
    // What does not exist stands last in either direction.
    if (x === null || y === null) return (x === null) - (y === null);
    return direction * (typeof x === "string" ? x.localeCompare(y) : x - y);
  };
}

function bodyRow(row, isOpen) {
  return make("tr", { "data-structure": row.structure || null }, ...row.cells.map(([text, small, , kind], column) => {
    if (!isOpen(column)) return null;
    const inside = column === 0 && row.key !== null
      ? [make("span", { class: "keyed" }, keyOf(row.key), make("span", {}, ...breakable(text)))] : [text];
    const more = small ? make("small", {}, small) : null;
    return column === 0
      ? make("th", { class: "name", scope: "row" }, ...inside, more)
      : make("td", { class: kind || null }, ...inside, more);
  }));
}

const breakable = (text) => text.split("_").flatMap((part, k) => (k ? ["_", make("wbr"), part] : [part]));

function drawTables() {
  for (const table of document.querySelectorAll("table[data-table]")) {
    const kind = table.dataset.table;
    const key = tableKey(kind);
    const where = table.closest(".table");
    where.querySelector(".empty")?.remove();
    const { columns, rows } = DATA.tables[key] ?? { columns: [], rows: [] };
    const [column, direction] = sorting.get(kind) ?? [null, 1];
    const shown = rows.filter((row) => isChosen(kind, row, rows));
    if (column !== null) shown.sort(compareCells(column, direction));
    table.hidden = !shown.length;
    if (!shown.length) where.append(nothing("Nothing to show of what is chosen."));
    // A column may be about one strategy.
    const isOpen = (k) => columns[k][2] === null || chosen.strategies.has(columns[k][2]);
    const heads = columns.map(([heading, meaning, strategy], k) => {
      if (!isOpen(k)) return null;
      const order = column === k ? (direction > 0 ? "ascending" : "descending") : "none";
      const left = shown[0]?.cells[k][3].includes("left") ? "left" : null;
      return make("th", { class: k ? left : "name", scope: "col", "aria-sort": order, title: meaning || null },
        make("button", { type: "button", class: "sort", onclick: () => sortBy(kind, k) },
          strategy === null ? null : keyOf(strategy), ...breakable(heading)));
    });
    table.tHead.replaceChildren(make("tr", {}, ...heads.filter(Boolean)));
    table.tBodies[0].replaceChildren(...shown.map((row) => bodyRow(row, isOpen)));
    const caption = where.parentElement.querySelector(`[data-caption="${kind}"]`);
    if (caption && DATA.tables[key]) caption.textContent = DATA.tables[key].caption;
  }
}

function sortBy(kind, column) {
  const [before, direction] = sorting.get(kind) ?? [null, 1];
  const rows = DATA.tables[tableKey(kind)].rows;
  const text = rows.some((row) => typeof row.cells[column][2] === "string");
  // Numbers: largest first, as one looks for the best; a second click turns round, a third goes back to the run's order.
  const first = text ? 1 : -1;
  if (before !== column) sorting.set(kind, [column, first]);
  else if (direction === first) sorting.set(kind, [column, -first]);
  else sorting.delete(kind);
  drawTables();
  // The heading was made again: a keyboard is to stay on it.
  document.querySelector(`table[data-table="${kind}"] [aria-sort="${sorting.has(kind) ? (sorting.get(kind)[1] > 0 ? "ascending" : "descending") : "none"}"] button`)?.focus();
}

for (const button of document.querySelectorAll("[data-export]")) {
  button.addEventListener("click", () => {
    const { export: kind, format } = button.dataset;
    const scope = DATA.scopes.length > 1 ? `-${DATA.scopes[chosen.scope].file}` : "";
    const csv = format === "csv";
    let text = "";
    let metric = `-${chosen.metric}`;
    if (kind === "matrices") text = csv ? matrixCsv() : matrixLatex();
    else {
      const key = tableKey(kind);
      if (!key) return;
      text = DATA.tables[key][format];
      if (key.endsWith("|")) metric = "";
    }
    download(`${DATA.name}-${kind}${scope}${metric}.${format}`, text, csv ? "text/csv" : "application/x-tex");
  });
}
