// What is chosen, and what is drawn again when that changes.
function drawWords() {
  for (const element of document.querySelectorAll("[data-metric-name]")) {
    element.textContent = DATA.metrics[chosen.metric].name;
  }
  for (const element of document.querySelectorAll("[data-stream-name]")) {
    element.textContent = DATA.scopes.length > 1 ? `Charts of ${stream().label}.` : "";
  }
  for (const element of document.querySelectorAll("[data-steps]")) {
    element.textContent = stream().steps.map((names, k) => `${k} ${names.map(spoken).join(", ")}`).join("; ");
  }
  for (const element of document.querySelectorAll("[data-shown]")) {
    element.hidden = !chosen.strategies.has(Number(element.dataset.shown));
  }
  for (const chip of document.querySelectorAll("[data-chip]")) {
    chip.setAttribute("aria-pressed", String(chosen.strategies.has(Number(chip.dataset.chip))));
  }
  for (const button of document.querySelectorAll("[data-pick]")) {
    button.setAttribute("aria-pressed", String(button.dataset.pick === chosen.metric));
  }
}

function draw() {
  drawWords();
  drawTables();
  drawForgetting();
  drawLearning();
  drawMaps();
  if (DATA.gates) drawGates();
}

function choose(change, structure) {
  change();
  draw();
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
for (const select of document.querySelectorAll("select[data-column]")) select.addEventListener("change", drawGates);

for (const element of document.querySelectorAll(".static")) element.remove();
for (const element of document.querySelectorAll(".live")) element.hidden = false;
// A browser may restore earlier choices when the page is loaded again.
if (place("structure")) chosen.structure = place("structure").value;
if (place("scope")) chosen.scope = Number(place("scope").value);
draw();
drawVolumes(chosen.structure);
