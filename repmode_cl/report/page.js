"use strict";
// One choice of metric for the whole page: sections that lack it keep what they show.
function pickMetric(metric) {
  for (const section of document.querySelectorAll("section")) {
    const blocks = section.querySelectorAll(".by-metric");
    if (![...blocks].some((block) => block.dataset.metric === metric)) continue;
    for (const block of blocks) block.hidden = block.dataset.metric !== metric;
    for (const button of section.querySelectorAll("[data-pick]")) {
      button.setAttribute("aria-pressed", String(button.dataset.pick === metric));
    }
  }
}
for (const button of document.querySelectorAll("[data-pick]")) {
  button.addEventListener("click", () => {
    // The page must not jump when a section above changes its height.
    const before = button.getBoundingClientRect().top;
    pickMetric(button.dataset.pick);
    window.scrollBy(0, button.getBoundingClientRect().top - before);
  });
}
for (const select of document.querySelectorAll("select[data-column]")) {
  const show = () => {
    const template = [...document.querySelectorAll("template[data-block]")]
      .find((one) => one.dataset.block === select.value);
    const place = document.querySelector(`.gate-place[data-column="${select.dataset.column}"]`);
    if (template && place) place.replaceChildren(template.content.cloneNode(true));
  };
  select.addEventListener("change", show);
  // A browser may restore an earlier choice when the page is loaded again.
  show();
}
