// What is chosen, and what follows it.
function showWords() {
  for (const element of document.querySelectorAll("[data-metric-name]")) {
    element.textContent = DATA.metrics[chosen.metric];
  }
  for (const element of document.querySelectorAll("[data-stream-name]")) {
    element.textContent = DATA.scopes.length > 1 ? `Charts of ${stream().label}.` : "";
  }
  for (const element of document.querySelectorAll("[data-steps]")) {
    element.textContent = stream().steps.map((names, k) => `${k} ${names.map(readable).join(", ")}`).join("; ");
  }
  for (const element of document.querySelectorAll("[data-legend]")) {
    element.hidden = !chosen.strategies.has(Number(element.dataset.legend));
  }
  for (const chip of document.querySelectorAll("[data-chip]")) {
    chip.setAttribute("aria-pressed", String(chosen.strategies.has(Number(chip.dataset.chip))));
  }
  for (const button of document.querySelectorAll("[data-pick]")) {
    button.setAttribute("aria-pressed", String(button.dataset.pick === chosen.metric));
  }
}

function show() {
  showWords();
  drawTables();
  showCharts("forgetting-charts", chosen.metric, "Nothing to show: what is learned in the last step cannot be forgotten.");
  showCharts("learning-charts", DATA.validated.includes(chosen.metric) ? chosen.metric : DATA.validated[0], "No validation figures of what is chosen.");
  showMaps();
  document.querySelectorAll(".frontiers").forEach(showChosen);
  showGates();
  for (const where of document.querySelectorAll("#gates, #side-by-side")) showChosen(where);
  // The structure that was chosen may be among those that are folded away.
  if (chosen.structure) document.querySelector("#side-by-side details")?.setAttribute("open", "");
}

function choose(change, structure) {
  change();
  show();
  return drawVolumes(structure);
}

for (const chip of document.querySelectorAll("[data-chip]")) {
  const strategy = Number(chip.dataset.chip);
  chip.addEventListener("click", () => choose(() => {
    if (!chosen.strategies.delete(strategy)) chosen.strategies.add(strategy);
  }));
}
place("all-strategies")?.addEventListener("click", () => choose(() => { chosen.strategies = new Set(DATA.strategies.keys()); }));
place("no-strategy")?.addEventListener("click", () => choose(() => chosen.strategies.clear()));
for (const button of document.querySelectorAll("[data-pick]")) {
  button.addEventListener("click", () => choose(() => { chosen.metric = button.dataset.pick; }));
}
place("structure")?.addEventListener("change", (event) => choose(() => { chosen.structure = event.target.value; }, event.target.value));
place("scope")?.addEventListener("change", (event) => choose(() => { chosen.scope = Number(event.target.value); }));
for (const select of document.querySelectorAll("select[data-column]")) select.addEventListener("change", showGates);

for (const element of document.querySelectorAll(".static")) element.remove();
for (const element of document.querySelectorAll(".live")) element.hidden = false;
// A browser may restore earlier choices when the page is loaded again.
if (place("structure")) chosen.structure = place("structure").value;
if (place("scope")) chosen.scope = Number(place("scope").value);
show();
drawVolumes(chosen.structure);
