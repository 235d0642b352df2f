"use strict";
(() => {
  const compare = (a, b, numeric) =>
    numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });

  const sortBy = (table, column, direction) => {
    const body = table.tBodies[0];
    const keyed = Array.from(body.rows, (row) => [row.cells[column].dataset.sort, row]);
    const known = keyed.filter(([key]) => key !== "");
    const numeric = known.length > 0 && known.every(([key]) => Number.isFinite(Number(key)));
    known.sort(([a], [b]) => direction * compare(a, b, numeric));
    const unknown = keyed.filter(([key]) => key === "");
    body.append(...[...known, ...unknown].map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sortBy(table, column, ascending ? 1 : -1);
      });
    });
  }

  const sections = Array.from(document.querySelectorAll("details"));
  for (const button of document.querySelectorAll("button[data-fold]")) {
    button.addEventListener("click", () => {
      for (const section of sections) {
        section.open = button.dataset.fold === "open" && !("alternative" in section.dataset);
      }
    });
  }

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = sections.filter((section) => !section.open && !("alternative" in section.dataset));
    for (const section of folded) section.open = true;
  });
  addEventListener("afterprint", () => {
    for (const section of folded) section.open = false;
  });
})();
