"use strict";
// The page says everything without this; it moves the threshold and hides cards and rows.
(() => {
  const whole = new Intl.NumberFormat("en");
  const share = (part, all) => (all ? ` (${((100 * part) / all).toFixed(2)}%)` : "");
  const slider = document.getElementById("threshold");
  if (slider) {
    const counts = JSON.parse(slider.dataset.counts);
    const line = document.getElementById("threshold-line");
    const says = document.getElementById("threshold-says");
    const show = () => {
      const edge = Number(slider.value);
      const place = (1000 * edge) / (counts.edges.length - 1);
      line.setAttribute("x1", place);
      line.setAttribute("x2", place);
      let text = `from ${counts.edges[edge].toFixed(4)} on: ` +
        `${whole.format(counts.above[edge])} images${share(counts.above[edge], counts.above[0])}`;
      for (const [name, above] of Object.entries(counts.known)) {
        text += `; ${name} ${whole.format(above[edge])} of ${whole.format(above[0])}`;
      }
      says.textContent = text;
    };
    slider.hidden = false;
    slider.addEventListener("input", show);
    show();
  }
  const filters = document.getElementById("filters");
  if (filters) {
    const cards = [...document.querySelectorAll("[data-class]")];
    const says = document.getElementById("filters-say");
    const apply = () => {
      const wanted = new FormData(filters);
      let shown = 0;
      for (const card of cards) {
        card.hidden = ["class", "status", "group"].some(
          (name) => wanted.get(name) && card.dataset[name] !== wanted.get(name));
        shown += card.hidden ? 0 : 1;
      }
      says.textContent = `${whole.format(shown)} of ${whole.format(cards.length)} shown`;
    };
    filters.hidden = false;
    filters.addEventListener("change", apply);
    filters.addEventListener("submit", (event) => event.preventDefault());
  }
})();
