"use strict";
// Sortable tables, the theme's button, the filters of the slices. Without scripts the page says all the same.
(() => {
  const all = (query, from = document) => Array.from(from.querySelectorAll(query));

  const button = document.getElementById("theme");
  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.setAttribute("aria-label", "Change between light and dark");
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const text = "v" in cell.dataset ? cell.dataset.v : cell.textContent.trim();
    return { text, number: text === "" ? NaN : Number(text) };
  };
  const sort = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row, place) => ({ row, place, key: keyOf(row, column) }));
    const known = rows.filter(({ key }) => key.text !== "");
    const numbers = known.every(({ key }) => !Number.isNaN(key.number));
    const way = descending ? -1 : 1;
    rows.sort((a, b) => {
      if (a.key.text === "" || b.key.text === "") return (a.key.text === "") - (b.key.text === "") || a.place - b.place;
      const order = numbers ? a.key.number - b.key.number : a.key.text.localeCompare(b.key.text, "en", { numeric: true });
      return way * order || a.place - b.place;
    });
    body.append(...rows.map(({ row }) => row));
  };
  for (const table of all("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      if ("fixed" in head.dataset) return;
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.append(...head.childNodes);
      head.append(sorter);
      sorter.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const descending = before ? before === "ascending" : head.classList.contains("n");
        all("[aria-sort]", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      });
    });
  }

  for (const form of all("form.filters")) {
    const tables = all(".forest", form.parentElement);
    const filter = () => {
      const target = form.elements.target.value;
      const slice = form.elements.slice.value;
      const words = form.elements.find.value.trim().toLowerCase();
      const small = form.elements.small.checked;
      const targets = Array.from(form.elements.target.options, (option) => option.value).slice(1);
      let shown = 0;
      tables.forEach((box, index) => {
        const off = target !== "" && targets[index] !== target;
        box.hidden = off;
        box.previousElementSibling.hidden = off;
        for (const row of box.querySelector("tbody").rows) {
          const label = `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase();
          row.hidden = (slice !== "" && row.dataset.slice !== slice) || (!small && "small" in row.dataset) || !label.includes(words);
          shown += !off && !row.hidden;
        }
      });
      form.querySelector("output").textContent = `${shown} row${shown === 1 ? "" : "s"} shown`;
    };
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    filter();
  }

  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
    const first = Array.from(links.keys()).find((id) => seen.has(id));
    if (first) {
      const strip = links.get(first).closest("ul");
      if (strip.scrollWidth > strip.clientWidth) strip.scrollLeft = links.get(first).offsetLeft - strip.offsetLeft - 40;
    }
    links.forEach((link, id) => id === first ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
  }, { rootMargin: "-15% 0px -60% 0px" });
  all("main > section").forEach((section) => watcher.observe(section));

  addEventListener("beforeprint", () => all("details").forEach((fold) => { fold.open = true; }));
})();
