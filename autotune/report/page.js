"use strict";
for (const script of document.querySelectorAll("script[data-figure]")) {
  const figure = JSON.parse(script.textContent);
  Plotly.newPlot(script.dataset.figure, figure.data, figure.layout, {
    displayModeBar: false, // its buttons lead out of the file, and cover the data on a phone
    displaylogo: false,
    responsive: true,
    scrollZoom: false,
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.querySelectorAll("button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const th = button.parentElement;
      const down = th.getAttribute("aria-sort") === "ascending";
      table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const missing = (v) => v === "" || v === "-";
        if (missing(x) || missing(y)) return missing(x) - missing(y); // dashes last, both ways
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
