"use strict";
/* The page of `repmode-cl serve`. It talks to /api/ of its own server and to nothing else. */

const find = (id) => document.getElementById(id);
const state = { server: null, model: null, image: null, job: null, request: null, layers: [], drawing: 0, busy: false };

// -- small helpers ------------------------------------------------------------------------------------------------

class ServerError extends Error {}

function show(id, shown) {
  find(id).hidden = !shown;
}

function say(id, text) {
  find(id).textContent = text;
  find(id).hidden = !text;
}

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function bytesText(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let number = bytes;
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${unit && number < 100 ? number.toFixed(1) : Math.round(number)} ${units[unit]}`;
}

function minutesText(minutes) {
  return minutes >= 1 ? `${Math.round(minutes)} ${Math.round(minutes) === 1 ? "minute" : "minutes"}` : "soon";
}

const namePart = (name) => name.replaceAll("_", " ");

async function ask(method, address, content) {
  let answer;
  try {
    answer = await fetch(address, {
      method,
      headers: content === undefined ? {} : { "Content-Type": "application/json" },
      body: content === undefined ? undefined : JSON.stringify(content),
    });
  } catch {
    throw new ServerError("The server does not answer. Has it been ended?");
  }
  if (answer.status === 401) location.assign("/sign-in");
  const type = answer.headers.get("content-type") || "";
  const value = type.startsWith("application/json") ? await answer.json() : null;
  if (!answer.ok) throw new ServerError(value?.error || `The server answers with status ${answer.status}.`);
  return value;
}

// -- models and structures ----------------------------------------------------------------------------------------

function showModel() {
  state.model = state.server.models[find("model").selectedIndex];
  find("model-name").textContent = state.model.name;
  const list = find("structures");
  list.replaceChildren();
  for (const structure of state.model.structures) {
    const box = make("input", { type: "checkbox", value: structure.name, checked: state.model.structures.length === 1 });
    const swatch = make("span", { className: "swatch" });
    swatch.style.backgroundColor = structure.colour;
    const { level, text, useful } = structure.verdict;
    const mark = make("span", { className: `verdict${useful ? " good" : ""}`, textContent: level });
    const about = [text.replace(`${level}: `, ""), structure.trained_on ? `trained on voxels of ${structure.trained_on}` : ""];
    const label = make("label", {}, box, swatch, make("b", { textContent: namePart(structure.name) }), mark,
      make("small", { textContent: about.filter(Boolean).join("; ") }));
    box.addEventListener("change", update);
    list.append(make("li", {}, label));
  }
  showVoxelNote();
  update();
}

const chosenStructures = () => [...find("structures").querySelectorAll(":checked")].map((box) => box.value);

function chooseAll(checked) {
  for (const box of find("structures").querySelectorAll("input")) box.checked = checked;
  update();
}

// A further channel of the result is offered where the model has the records for it, of all that is chosen.
function offer(id, key) {
  const chosen = chosenStructures();
  const possible = chosen.length > 0 && state.model.structures.every((one) => !chosen.includes(one.name) || one[key]);
  show(`${id}-row`, possible);
  if (!possible) find(id).checked = false;
}

function update() {
  const count = chosenStructures().length;
  offer("confidence", "has_confidence");
  offer("unlike-map", "has_unlike_map");
  const hints = [];
  if (!count) hints.push("choose a structure");
  if (!state.image) hints.push("choose an image");
  find("predict").disabled = hints.length > 0 || state.busy;
  find("predict").textContent = count > 1 ? `Predict ${count} structures` : "Predict";
  find("predict-hint").textContent = hints.length ? `First ${hints.join(" and ")}.` : "";
}

// -- the image ----------------------------------------------------------------------------------------------------

function startUpload(text) {
  say("image-error", "");
  find("upload-text").textContent = text;
  find("upload-bar").removeAttribute("value");
  show("upload", true);
}

function endUpload() {
  show("upload", false);
  state.request = null;
}

function failUpload(error) {
  if (!(error instanceof ServerError)) throw error;
  endUpload();
  say("image-error", error.message);
}

function upload(file) {
  if (!file) return;
  if (file.size > state.server.max_upload) {
    say("image-error", `${file.name}: ${bytesText(file.size)} are more than the ${state.server.max_upload_text} that this server takes. Crop the image, or predict it with repmode-cl predict, which takes any size.`);
    return;
  }
  state.request?.abort();
  forgetImage();
  startUpload(`Sending ${file.name} (${bytesText(file.size)}) …`);
  // Not fetch, which does not tell how much was sent.
  const request = new XMLHttpRequest();
  state.request = request;
  request.open("POST", `/api/images?name=${encodeURIComponent(file.name)}`);
  request.responseType = "json";
  request.upload.addEventListener("progress", (event) => {
    find("upload-bar").value = event.loaded / event.total;
    const part = Math.floor(100 * event.loaded / event.total);
    find("upload-text").textContent = part < 100 ? `Sending ${file.name}: ${part} %` : `Reading the header of ${file.name} …`;
  });
  request.addEventListener("load", () => {
    if (request.status === 201) receiveImage(request.response);
    else failUpload(new ServerError(request.response?.error || `The server answers with status ${request.status}.`));
  });
  request.addEventListener("error", () => failUpload(new ServerError(`${file.name} could not be sent: the server does not answer, or broke off.`)));
  request.send(file);
}

async function trySample() {
  state.request?.abort();
  forgetImage();
  startUpload("Simulating some cells …");
  find("upload-cancel").hidden = true;
  try {
    receiveImage(await ask("POST", "/api/sample", { model: state.model.name }));
  } catch (error) {
    failUpload(error);
  } finally {
    find("upload-cancel").hidden = false;
  }
}

function forgetImage() {
  const image = state.image;
  state.image = null;
  state.job = null;
  state.busy = false;
  for (const id of ["facts", "view", "job", "result-tools", "result-caption"]) show(id, false);
  for (const id of ["image-error", "job-error"]) say(id, "");
  find("notes").replaceChildren();
  update();
  return image ? ask("DELETE", `/api/images/${image.id}`).catch(() => undefined) : undefined;
}

function receiveImage(image) {
  endUpload();
  state.image = image;
  find("image-name").textContent = image.name;
  fill(find("scene"), image.scenes, (name) => name);
  showFacts();
  show("facts", true);
  showImage();
  update();
}

function fill(select, names, text) {
  select.replaceChildren(...names.map((name, number) => make("option", { value: number, textContent: text(name) })));
}

function likelyLight(names) {
  const found = names.findIndex((name) => /transmitted|bright|phase|dic\b|^(bf|tl|trans)\b/i.test(name));
  return found < 0 ? 0 : found;
}

function showFacts() {
  const image = state.image;
  find("image-size").textContent = `${image.shape.join(" × ")} voxels (z, y, x), ${image.dtype}, ${bytesText(image.bytes)}`;
  show("scene-row", image.scenes.length > 1);
  show("time-row", image.times > 1);
  find("time").max = image.times - 1;
  show("channel-row", image.channels.length > 1);
  fill(find("channel"), image.channels, (name) => name);
  find("channel").selectedIndex = likelyLight(image.channels);
  ["z", "y", "x"].forEach((axis, number) => {
    find(`voxel-${axis}`).value = image.voxel_size ? Number(image.voxel_size[number].toPrecision(5)) : "";
  });
  find("force").checked = false;
  showVoxelNote();
}

function showVoxelNote() {
  if (!state.image) return;
  const size = state.model.voxel_size;
  const stated = state.image.voxel_size ? "As the file states it; correct it if it is wrong." : "The file states none; enter it if you know it.";
  find("voxel-note").textContent = size ? `${stated} Images are brought to ${size.map((step) => Number(step.toPrecision(4))).join(" × ")} µm for this model.` : stated;
}

async function changeScene() {
  try {
    const facts = await ask("GET", `/api/images/${state.image.id}?scene=${find("scene").value}`);
    Object.assign(state.image, facts);
    say("image-error", "");
    showFacts();
    showImage();
  } catch (error) {
    failUpload(error);
  }
}

function where() {
  const image = state.image;
  return {
    scene: image.scenes.length > 1 ? Number(find("scene").value) : null,
    t: image.times > 1 ? Math.min(Math.max(0, Math.floor(Number(find("time").value))), image.times - 1) : null,
    channel: Number(find("channel").value),
  };
}

function voxelSize() {
  const texts = ["z", "y", "x"].map((axis) => find(`voxel-${axis}`).value);
  if (texts.every((text) => text === "")) return null;
  if (!texts.every((text) => Number(text) > 0)) throw new ServerError("Voxel size: enter three positive numbers (z, y, x), or none.");
  const entered = texts.map(Number);
  // The file's own, unless it was changed: the field shows it rounded.
  const stated = state.image.voxel_size;
  return stated && entered.every((step, number) => step === Number(stated[number].toPrecision(5))) ? null : entered;
}

// -- the prediction -----------------------------------------------------------------------------------------------

async function predict() {
  say("job-error", "");
  find("notes").replaceChildren();
  show("result-tools", false);
  show("result-caption", false);
  state.busy = true;
  update();
  try {
    const job = await ask("POST", "/api/jobs", {
      image: state.image.id, model: state.model.name, structures: chosenStructures(), ...where(),
      voxel_size: voxelSize(), force: find("force").checked,
      confidence: find("confidence").checked, unlike_map: find("unlike-map").checked,
    });
    find("job-text").textContent = "Waiting …";
    show("job", true);
    follow(job);
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    endJob(error.message);
  }
}

function endJob(message) {
  state.busy = false;
  show("job", false);
  say("job-error", message);
  update();
}

async function follow(job) {
  state.job = job;
  try {
    while (state.job?.id === job.id && (job.state === "waiting" || job.state === "running")) {
      showProgress(job);
      await new Promise((resolve) => { setTimeout(resolve, 300); });
      if (state.job?.id === job.id) job = await ask("GET", `/api/jobs/${job.id}`);
    }
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (state.job?.id === job.id) endJob(error.message);
    return;
  }
  if (state.job?.id !== job.id) return; // another image was chosen
  state.job = job;
  if (job.state === "finished") showResult(job);
  else endJob(job.state === "failed" ? job.error : "Cancelled.");
}

function showProgress(job) {
  const bar = find("job-bar");
  let text = "Starting …";
  if (job.state === "waiting") {
    text = job.ahead ? `Waiting: ${job.ahead} ${job.ahead === 1 ? "prediction is" : "predictions are"} before yours.` : "Waiting …";
  } else if (job.total) {
    text = job.done < job.total ? `Predicting: ${job.done} of ${job.total} windows` : `${job.stage || "Writing"} …`;
  } else if (job.stage) {
    text = `${job.stage} …`;
  }
  if (find("job-text").textContent !== text) find("job-text").textContent = text;
  if (job.total && job.state === "running") bar.value = job.done / job.total;
  else bar.removeAttribute("value");
}

function showLikeness(likeness) {
  const names = new Map();
  for (const [name, text] of Object.entries(likeness)) names.set(text, [...(names.get(text) || []), namePart(name)]);
  const texts = [...names].map(([text, several]) => `${several.join(", ")}: ${text}`);
  find("notes").append(make("p", { className: "caption", textContent: `${texts.join("; ")}.` }));
}

function showNotes(notes) {
  find("notes").replaceChildren(...notes.map((note) => make("p", { className: "note", textContent: note })));
}

function showResult(job) {
  endJob("");
  const doubtful = state.model.structures.filter((one) => job.structures.includes(one.name) && !one.verdict.useful);
  showNotes([...job.notes, ...doubtful.map((one) => `${namePart(one.name)}: ${one.verdict.text}`)]);
  showLikeness(job.likeness);
  const link = find("download");
  link.href = `/api/jobs/${job.id}/result`;
  link.download = job.file;
  link.textContent = `Download OME-TIFF (${bytesText(job.bytes)})`;
  show("result-tools", true);
  show("result-caption", true);
  find("view-title").textContent = "The prediction";
  const colours = new Map(state.model.structures.map((one) => [one.name, one.colour]));
  setLayers([
    { title: "transmitted light", colour: "#ffffff", strength: 0.6, shown: true, address: (z) => `/api/jobs/${job.id}/plane?channel=0&z=${z}` },
    ...job.structures.map((name, number) => ({
      title: namePart(name), colour: colours.get(name) || "#ffffff", strength: 1, shown: number < 3,
      address: (z) => `/api/jobs/${job.id}/plane?channel=${number + 1}&z=${z}`,
    })),
    ...job.further.map((name, number) => ({
      title: namePart(name), colour: "#ffffff", strength: 1, shown: false,
      address: (z) => `/api/jobs/${job.id}/plane?channel=${job.structures.length + number + 1}&z=${z}`,
    })),
  ]);
  find("view").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

// -- the viewer ---------------------------------------------------------------------------------------------------

function showImage() {
  const { id } = state.image;
  const { scene, t, channel } = where();
  const choice = new URLSearchParams(Object.entries({ scene, t, channel }).filter(([, value]) => value !== null));
  find("view-title").textContent = "The image";
  show("view", true);
  const slider = find("z");
  slider.max = state.image.shape[0] - 1;
  slider.value = Math.floor(state.image.shape[0] / 2);
  setLayers([{ title: state.image.channels[channel], colour: "#ffffff", strength: 1, shown: true, address: (z) => `/api/images/${id}/plane?${choice}&z=${z}` }]);
}

function setLayers(layers) {
  for (const layer of layers) layer.pictures = new Map();
  state.layers = layers;
  find("channels").replaceChildren(...layers.map((layer) => {
    const box = make("input", { type: "checkbox", checked: layer.shown });
    const strength = make("input", { type: "range", min: 0, max: 1.5, step: 0.05, value: layer.strength });
    strength.setAttribute("aria-label", `Strength of ${layer.title}`);
    const swatch = make("span", { className: "swatch" });
    swatch.style.backgroundColor = layer.colour;
    box.addEventListener("change", () => { layer.shown = box.checked; draw(); });
    strength.addEventListener("input", () => { layer.strength = Number(strength.value); draw(); });
    return make("li", {}, make("label", {}, box, swatch, layer.title),
      make("div", { className: "strength" }, make("span", { textContent: "strength", ariaHidden: "true" }), strength));
  }));
  draw();
}

async function picture(layer, z) {
  if (!layer.pictures.has(z)) {
    if (layer.pictures.size > 60) layer.pictures.delete(layer.pictures.keys().next().value);
    const loading = fetch(layer.address(z)).then(async (answer) => {
      if (!answer.ok) throw new ServerError((await answer.json()).error);
      return createImageBitmap(await answer.blob());
    });
    layer.pictures.set(z, loading);
    loading.catch(() => layer.pictures.delete(z));
  }
  return layer.pictures.get(z);
}

async function draw() {
  const number = ++state.drawing;
  const z = Number(find("z").value);
  find("z-text").textContent = `${z + 1} of ${Number(find("z").max) + 1}`;
  const layers = state.layers.filter((layer) => layer.shown);
  let pictures;
  try {
    pictures = await Promise.all(layers.map((layer) => picture(layer, z)));
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (number === state.drawing) say("image-error", error.message);
    return;
  }
  if (number !== state.drawing) return; // the slider has moved on
  const canvas = find("canvas");
  const first = pictures[0];
  if (first && (canvas.width !== first.width || canvas.height !== first.height)) {
    canvas.width = first.width;
    canvas.height = first.height;
  }
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = 1;
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "lighter";
  layers.forEach((layer, place) => {
    // Strength above 1 is drawn twice.
    for (let left = layer.strength; left > 0; left -= 1) {
      context.globalAlpha = Math.min(1, left);
      context.drawImage(pictures[place], 0, 0);
    }
  });
  canvas.setAttribute("aria-label", `Plane ${z + 1} with ${layers.map((layer) => layer.title).join(", ") || "no channel"}`);
  canvas.dataset.drawn = `${number}`;
}

// -- events -------------------------------------------------------------------------------------------------------

async function start() {
  try {
    state.server = await ask("GET", "/api/models");
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    say("image-error", error.message);
    return;
  }
  find("most").textContent = state.server.max_upload_text;
  find("keep").textContent = minutesText(state.server.keep_downloaded_minutes);
  fill(find("model"), state.server.models, (model) => model.name);
  show("model-row", state.server.models.length > 1);
  showModel();
}

find("model").addEventListener("change", showModel);
find("all").addEventListener("click", () => chooseAll(true));
find("none").addEventListener("click", () => chooseAll(false));
find("file").addEventListener("change", (event) => { upload(event.target.files[0]); event.target.value = ""; });
find("sample").addEventListener("click", trySample);
find("upload-cancel").addEventListener("click", () => { state.request?.abort(); endUpload(); });
find("delete").addEventListener("click", async () => { await forgetImage(); find("file").focus(); });
find("scene").addEventListener("change", changeScene);
find("time").addEventListener("change", showImage);
find("channel").addEventListener("change", showImage);
find("facts").addEventListener("submit", (event) => event.preventDefault());
find("predict").addEventListener("click", predict);
find("job-cancel").addEventListener("click", () => { if (state.job) ask("DELETE", `/api/jobs/${state.job.id}`).catch(() => undefined); });
find("z").addEventListener("input", draw);
for (const kind of ["dragover", "dragenter"]) {
  find("drop").addEventListener(kind, (event) => { event.preventDefault(); find("drop").classList.add("over"); });
}
find("drop").addEventListener("dragleave", () => find("drop").classList.remove("over"));
find("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  upload(event.dataTransfer.files[0]);
});
// A tab that is closed leaves nothing behind; keepalive lets the request outlive the page.
addEventListener("pagehide", (event) => {
  if (state.image && !event.persisted) fetch(`/api/images/${state.image.id}`, { method: "DELETE", keepalive: true });
});
start();
