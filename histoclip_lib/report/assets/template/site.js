// The pages that sum up runs read fully without this script: it lets tables be sorted by a column, one metric of
// Table I be looked at alone, and runs be filtered and sorted.
(() => {
  const missingLast = (a, b) => (a === null) - (b === null);
  const compareText = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" }).compare;

  // A column of numbers is sorted highest first, then lowest first, a column of names the other way round; the third
  // time the table is as it was. Rows of the paper stay at the foot of their data set.
  function sortable(table) {
    const bodies = [...table.tBodies].map((body) => (
      { body, pinned: [...body.rows].filter((row) => row.matches(".paper")), rows: [...body.rows].filter((row) => !row.matches(".paper")) }));
    if (Math.max(...bodies.map(({ rows }) => rows.length)) < 2) return;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const cells = bodies.flatMap(({ rows }) => rows.map((row) => row.cells[column]));
      const isNumber = cells.every((cell) => cell.dataset.value !== undefined);
      const valueOf = (row) => {
        const cell = row.cells[column];
        if (!isNumber) return cell.textContent.trim();
        return cell.dataset.value === "" ? null : Number(cell.dataset.value);
      };
      const orders = isNumber ? ["descending", "ascending"] : ["ascending", "descending"];
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = head.ariaSort ? orders[orders.indexOf(head.ariaSort) + 1] : orders[0];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (order) head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        for (const { body, pinned, rows } of bodies) {
          const keyed = rows.map((row) => ({ row, key: valueOf(row) }));
          if (order) {
            keyed.sort((a, b) => missingLast(a.key, b.key) || sign * (isNumber ? a.key - b.key : compareText(a.key, b.key)));
          }
          body.append(...keyed.map(({ row }) => row), ...pinned);
        }
      });
    });
  }

  function metricSwitch(fieldset) {
    const parts = [...document.querySelectorAll("[data-metric]")];
    const show = (metric) => { for (const part of parts) part.hidden = part.dataset.metric !== metric; };
    fieldset.addEventListener("change", (event) => show(event.target.value));
    show(fieldset.querySelector("input:checked").value);
    fieldset.hidden = false;
  }

  function runControls(controls, cards) {
    const all = [...cards.children];
    const [filter, order, count] = ["run-filter", "run-order", "run-count"].map((id) => document.getElementById(id));
    const textOf = ({ dataset: { name, dataset, backbone } }) => [name, dataset, backbone].join(" ").toLowerCase();
    const numberOf = (card, key) => (card.dataset[key] ? Number(card.dataset[key]) : null);
    const byText = (key) => (a, b) => (
      missingLast(a.dataset[key] ?? null, b.dataset[key] ?? null) || compareText(a.dataset[key], b.dataset[key]));
    const byNumber = (key) => (a, b) => (
      missingLast(numberOf(a, key), numberOf(b, key)) || numberOf(b, key) - numberOf(a, key));
    const newest = (a, b) => (
      missingLast(a.dataset.made ?? null, b.dataset.made ?? null) || Date.parse(b.dataset.made) - Date.parse(a.dataset.made));
    const orders = {
      name: byText("name"), dataset: byText("dataset"), made: newest, score: byNumber("score"), lead: byNumber("lead"),
    };
    function refresh() {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const card of all) card.hidden = !words.every((word) => textOf(card).includes(word));
      cards.append(...[...all].sort(orders[order.value]));
      const shown = all.filter((card) => !card.hidden).length;
      count.textContent = shown === all.length ? `${all.length} runs` : `${shown} of ${all.length} runs`;
    }
    filter.addEventListener("input", refresh);
    order.addEventListener("change", refresh);
    controls.hidden = false;
    refresh();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("table.sortable").forEach(sortable);
    const fieldset = document.querySelector("fieldset.metrics");
    if (fieldset) metricSwitch(fieldset);
    const controls = document.querySelector(".controls");
    if (controls) runControls(controls, document.getElementById("run-cards"));
  });
})();
