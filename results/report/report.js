"use strict";
// Sorting: the headings of a table become buttons; cells without a number stand last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (!heading.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    const numbers = heading.classList.contains("n");
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      const up = before === "none" ? !numbers : before === "descending";
      for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        if (!numbers) return cell.textContent.trim();
        return cell.dataset.o ? Number(cell.dataset.o) : NaN;
      };
      const compare = (a, b) => numbers ? a - b : a.localeCompare(b, undefined, { numeric: true });
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        const last = Number(Number.isNaN(a)) - Number(Number.isNaN(b));
        return last || (Number.isNaN(a) ? 0 : up ? compare(a, b) : compare(b, a));
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
// Light or dark, as the system has it until the button says otherwise.
const root = document.documentElement;
const button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
button.hidden = false;
button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
system.addEventListener("change", label);
label();
// A phone begins with the results; paper has everything but the runs.
const contents = document.querySelector(".contents");
contents.open = innerWidth > 960;
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not(.run)")) part.open = true;
});
