// Test volumes, slice by slice: truth and predictions with one contrast, and their signed difference.
const view = { structure: null, stack: null, z: 0, y: 0 };
const stacks = new Map();
const LESS = [90, 170, 255]; // predicted too dark
const MORE = [255, 154, 60]; // too bright

async function loadStack(name) {
  if (stacks.has(name)) return stacks.get(name);
  const facts = read(`volumes-${name}`);
  const [depth, height, width] = facts.size;
  const levels = new Map();
  for (const panel of facts.panels) {
    const image = make("img", { src: panel.uri, alt: "" });
    await image.decode();
    const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const volume = new Uint8Array(depth * height * width);
    for (let z = 0, to = 0; z < depth; z += 1) {
      const [top, left] = [Math.floor(z / facts.across) * facts.tile[0], (z % facts.across) * facts.tile[1]];
      for (let y = 0; y < height; y += 1) {
        for (let x = 0; x < width; x += 1, to += 1) volume[to] = pixels[4 * ((top + y) * canvas.width + left + x)];
      }
    }
    levels.set(panel.key, volume);
  }
  const stack = { facts, levels };
  if (stacks.size > 3) stacks.delete(stacks.keys().next().value);
  stacks.set(name, stack);
  return stack;
}

const valueOf = (facts, level) => facts.levels[0] + (level / 255) * (facts.levels[1] - facts.levels[0]);

// Grey of each level; of the signal the levels themselves.
function greyLevels(facts, key) {
  const [black, white] = facts.window;
  return Uint8ClampedArray.from({ length: 256 }, (_, level) =>
    (key === "signal" ? level : (255 * (valueOf(facts, level) - black)) / (white - black)));
}

function paint(canvas, width, height, colourAt) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let y = 0, k = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, k += 4) {
      const colour = colourAt(x, y);
      [image.data[k], image.data[k + 1], image.data[k + 2], image.data[k + 3]] = [...colour, 255];
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function differenceColour(difference, range) {
  const strength = Math.min(1, Math.abs(difference) / range);
  return (difference < 0 ? LESS : MORE).map((part) => part * strength);
}

function drawSlices() {
  const { facts, levels } = view.stack;
  const [depth, height, width] = facts.size;
  const truth = levels.get("truth");
  const at = (x, y, z) => (z * height + y) * width + x;
  for (const card of place("volumes").querySelectorAll(".panel")) {
    const volume = levels.get(card.dataset.key);
    const grey = greyLevels(facts, card.dataset.key);
    const shade = (index) => { const level = grey[volume[index]]; return [level, level, level]; };
    paint(card.querySelector(".xy"), width, height, (x, y) => shade(at(x, y, view.z)));
    paint(card.querySelector(".xz"), width, depth, (x, z) => shade(at(x, view.y, z)));
    const difference = card.querySelector(".difference");
    if (difference) {
      const unit = (facts.levels[1] - facts.levels[0]) / 255;
      paint(difference, width, height, (x, y) =>
        differenceColour((volume[at(x, y, view.z)] - truth[at(x, y, view.z)]) * unit, facts.range));
    }
  }
  const [dz, dy] = facts.step;
  place("slice-z-value").textContent = `${Math.floor(view.z * dz)} of ${facts.voxels[0]}`;
  place("slice-y-value").textContent = `${Math.floor(view.y * dy)} of ${facts.voxels[1]}`;
}

function pointed(event, key) {
  const { facts, levels } = view.stack;
  const [, height, width] = facts.size;
  const box = event.target.getBoundingClientRect();
  const x = Math.min(width - 1, Math.floor(((event.clientX - box.left) / box.width) * width));
  const y = Math.min(height - 1, Math.floor(((event.clientY - box.top) / box.height) * height));
  const index = (view.z * height + y) * width + x;
  const [dz, dy, dx] = facts.step;
  const truth = valueOf(facts, levels.get("truth")[index]);
  const lines = [`x ${Math.floor(x * dx)}, y ${Math.floor(y * dy)}, z ${Math.floor(view.z * dz)}`, `truth ${number(truth, 2)}`];
  if (key !== "signal" && key !== "truth") {
    const value = valueOf(facts, levels.get(key)[index]);
    lines.push(`prediction ${number(value, 2)}`, `difference ${number(value - truth, 2)}`);
  }
  showTip(event, ...lines.map((line) => make("div", {}, line)));
}

function card({ key, note }) {
  const strategy = DATA.strategies.indexOf(key);
  const title = { signal: "transmitted light", truth: "truth" }[key] ?? key;
  const label = `${readable(view.structure)}, ${title}`;
  const canvas = (kind, text) => make("canvas", {
    class: kind, role: "img", "aria-label": `${label}, ${text}`,
    onpointermove: (event) => { if (kind !== "xz") pointed(event, key); }, onpointerleave: hideTip,
    onclick: (event) => {
      if (kind === "xz") return;
      const box = event.target.getBoundingClientRect();
      place("slice-y").value = Math.floor(((event.clientY - box.top) / box.height) * view.stack.facts.size[1]);
      place("slice-y").dispatchEvent(new Event("input"));
    },
  });
  return make("div", { class: "panel", "data-key": key, "data-strategy": strategy < 0 ? null : strategy },
    make("h4", {}, strategy < 0 ? null : keyOf(strategy), title),
    make("p", {}, note || { signal: "input", truth: "fluorescence" }[key] || ""),
    canvas("xy", "xy slice"), canvas("xz", "xz slice"),
    strategy < 0 ? null : canvas("difference", "prediction minus truth, xy slice"));
}

async function drawVolumes(structure) {
  if (!place("volumes")) return;
  const select = place("volume-structure");
  if (structure && place(`volumes-${structure}`)) select.value = structure;
  const name = select.value;
  if (view.structure !== name) {
    const stack = await loadStack(name);
    if (select.value !== name) return; // another was chosen meanwhile
    const [z, y] = view.structure === null || view.stack.facts.size.join() !== stack.facts.size.join()
      ? stack.facts.start : [view.z, view.y];
    Object.assign(view, { structure: name, stack, z, y });
    for (const [id, size, value] of [["slice-z", stack.facts.size[0], z], ["slice-y", stack.facts.size[1], y]]) {
      place(id).max = size - 1;
      place(id).value = value;
    }
  }
  const { facts } = view.stack;
  const shown = facts.panels.filter(({ key }) => !DATA.strategies.includes(key) || chosen.strategies.has(DATA.strategies.indexOf(key)));
  place("volumes").replaceChildren(...shown.map(card));
  const [depth, height, width] = facts.voxels;
  const reduced = Math.max(...facts.step) > 1 ? `, here reduced to ${[...facts.size].reverse().join(" × ")}` : "";
  place("volume-caption").textContent =
    `${width} × ${height} × ${depth} voxels (x, y, z)${reduced}. Truth and predictions: black is ${number(facts.window[0], 1)}, ` +
    `white ${number(facts.window[1], 1)} z-score units. Kept here as JPEG of quality ${facts.quality}; the volumes themselves lie in predictions/.`;
  place("difference-range").replaceChildren(
    make("span", {}, `−${facts.range} (too dark)`), make("i", { class: "ramp" }), make("span", {}, `+${facts.range} (too bright)`));
  drawSlices();
}

for (const [id, key] of [["slice-z", "z"], ["slice-y", "y"]]) {
  place(id)?.addEventListener("input", (event) => {
    view[key] = Number(event.target.value);
    if (view.stack) drawSlices();
  });
}
place("volume-structure")?.addEventListener("change", () => drawVolumes());
