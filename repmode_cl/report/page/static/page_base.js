"use strict";
// What all parts of the page share: its data, what is chosen, and a few helpers. The parts are joined into one script.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const DATA = read("data");
const COLOURS = 16;
const chosen = {
  strategies: new Set(DATA.strategies.keys()),
  structure: "", // all
  scope: 0,
  metric: Object.keys(DATA.metrics)[0] ?? "r2",
};

const place = (id) => document.getElementById(id);
const readable = (structure) => DATA.structures[structure] ?? structure;
const stream = () => DATA.streams.find((one) => one.name === DATA.scopes[chosen.scope].charts);
const isStructureChosen = (name) => !chosen.structure || chosen.structure === name;

// make("div", {class: "a", onclick: f}, child, "text"): an element; true is an empty attribute, false and null none.
function make(tag, attributes = {}, ...children) {
  const svg = ["line", "text"].includes(tag);
  const element = svg ? document.createElementNS("http:\u002f/www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  let text = value.toFixed(digits);
  if (Number(text) === 0) text = text.replace("-", "");
  return text.replace("-", "−");
}

const keyOf = (strategy) => make("i", { class: `key s${strategy % COLOURS}` });

// A place that has nothing to show says why.
const nothing = (text) => make("p", { class: "empty" }, text);

const tip = make("div", { class: "tip", hidden: true, role: "status" });
document.body.append(tip);

function showTip(event, ...lines) {
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - box.width - 10 : event.clientX + 14;
  const top = Math.min(event.clientY + 12, innerHeight - box.height - 6);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}
const hideTip = () => { tip.hidden = true; };

function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
