"use strict";
// Draws the charts, and lets the arrow keys read their marks: the labels that Vega gives them for screen readers.
const { config, charts } = JSON.parse(document.getElementById("charts").textContent);
const FORWARD = ["ArrowRight", "ArrowDown"], BACK = ["ArrowLeft", "ArrowUp"];

function readWithKeys(chart) {
  const reading = chart.nextElementSibling;
  let at = -1;
  chart.addEventListener("keydown", (event) => {
    const step = FORWARD.includes(event.key) ? 1 : BACK.includes(event.key) ? -1 : 0;
    const marks = chart.querySelectorAll("[role=graphics-symbol][aria-roledescription]:not([aria-roledescription=axis]):not([aria-roledescription=legend])");
    if (!step || !marks.length) return;
    event.preventDefault();
    marks[at]?.classList.remove("read");
    at = at < 0 && step < 0 ? marks.length - 1 : (at + step + marks.length) % marks.length;
    marks[at].classList.add("read");
    reading.textContent = marks[at].getAttribute("aria-label");
  });
  chart.addEventListener("blur", () => {
    chart.querySelector(".read")?.classList.remove("read");
    reading.textContent = "";
    at = -1;
  });
}

for (const [name, spec] of Object.entries(charts)) {
  const chart = document.getElementById(name);
  // ast: expressions are interpreted, for the page's policy allows no code made of text.
  vegaEmbed(chart, spec, { config, renderer: "svg", actions: false, ast: true, tooltip: { theme: "custom" } })
    .then(() => { readWithKeys(chart); chart.dataset.drawn = "yes"; })
    .catch((error) => { chart.textContent = `This chart could not be drawn: ${error.message}. Its numbers are below.`; console.error(error); });
}
