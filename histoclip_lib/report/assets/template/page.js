"use strict";
// The page reads fully without this script: it adds the theme toggle, hides code until it is asked for, marks the place in
// the contents list, sorts tables by a column, saves tables and figures as files, filters and sorts runs, opens what is
// folded for print, and makes boxes that scroll stops of the keyboard.
// The theme is set at once, before anything is drawn; the rest waits for the document.
(() => {
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("histoclip-theme"); } catch { return null; } };
  const store = (theme) => { try { localStorage.setItem("histoclip-theme", theme); } catch { /* private window */ } };
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
  const saved = stored();
  if (saved === "dark" || saved === "light") root.dataset.theme = saved;

  function themeToggle(button) {
    const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      store(root.dataset.theme);
      label();
    });
    systemDark.addEventListener("change", label);
    label();
    button.hidden = false;
  }

  function codeSwitch(button) {
    const folds = [...document.querySelectorAll("article details.code")];
    if (!folds.length) return;
    function show(shown) {
      root.classList.toggle("without-code", !shown);
      for (const fold of folds) fold.open = shown;
      button.textContent = shown ? "Hide code" : "Show code";
      button.setAttribute("aria-pressed", shown);
    }
    button.addEventListener("click", () => show(root.classList.contains("without-code")));
    show(false);
    button.hidden = false;
  }

  const compareText = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" }).compare;
  const missingLast = (a, b) => (a === null) - (b === null);
  const UNITS = { kB: 1e3, MB: 1e6 }; // of sizes of files
  // The number with which a cell begins; null for a dash or nothing, undefined for text.
  function numberIn(text) {
    const plain = text.trim().replace(/^[−–-](?=[\d.])/, "-").replace(/(?<=\d),(?=\d{3})/g, "");
    if (/^[—–-]?$/.test(plain)) return null;
    const found = /^[<>+]?\s*(-?\d*\.?\d+(?:e-?\d+)?)(?![\w.])\s*(\w*)/i.exec(plain);
    return found ? found[1] * (UNITS[found[2]] ?? 1) : undefined;
  }

  // A column of numbers is sorted highest first, then lowest first, one of text the other way round; the third time the
  // table is as it was. Lines of the paper stay at the foot of their data set.
  function sortable(table) {
    const bodies = [...table.tBodies].map((body) => {
      const rows = [...body.rows];
      return { body, pinned: rows.filter((row) => row.matches(".paper")), rows: rows.filter((row) => !row.matches(".paper")) };
    });
    const columns = new Set([...table.rows].map((row) => row.cells.length));
    if (table.tHead?.rows.length !== 1 || columns.size !== 1 || table.querySelector("[colspan], [rowspan]")) return;
    if (bodies.reduce((sum, { rows }) => sum + rows.length, 0) < 3) return;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const textOf = (row) => row.cells[column].textContent.trim();
      const numbers = bodies.flatMap(({ rows }) => rows.map((row) => numberIn(textOf(row))));
      const isNumber = !numbers.includes(undefined) && numbers.some((number) => number !== null);
      const valueOf = (row) => (isNumber ? numberIn(textOf(row)) : textOf(row) || null);
      const orders = isNumber ? ["descending", "ascending"] : ["ascending", "descending"];
      if (!head.textContent.trim()) return;
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

  // A table as it is shown: lines in their order, numbers with their digits. A dash becomes nothing, and a cell that spans
  // others stands in all of them, so that programs read both as they are meant.
  function csvOf(table) {
    const field = (cell) => {
      const text = (cell.textContent.trim() || cell.querySelector("img")?.alt || "").replace(/\s+/g, " ");
      const value = /^[—–-]$/.test(text) ? "" : text;
      return /[",]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
    };
    const lines = [...table.rows].map(() => []);
    [...table.rows].forEach((row, r) => {
      for (const cell of row.cells) {
        let column = 0;
        while (lines[r][column] !== undefined) column += 1;
        for (const line of lines.slice(r, r + cell.rowSpan)) {
          for (let c = column; c < column + cell.colSpan; c++) line[c] = field(cell);
        }
      }
    });
    return new Blob(["\ufeff", ...lines.map((line) => `${line.join(",")}\r\n`)], { type: "text/csv" }); // Excel needs the mark
  }

  function fileOf(image) {
    const [, type, data] = /^data:([^;]+);base64,(.+)$/s.exec(image.src);
    return new Blob([Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0))], { type });
  }

  // A button at the end of a caption; files are named by run, page and number: demo_04_results_table-2.csv.
  function savable(caption, kind, id, blobOf) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "save";
    button.textContent = `Save as ${kind.toUpperCase()}`;
    button.addEventListener("click", () => {
      const page = decodeURIComponent(location.pathname).replace(/\.html$/, "").split("/").slice(-2).join("_");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blobOf());
      link.download = `${page}_${id}.${kind}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    });
    caption.append(" ", button);
  }

  function savables() {
    for (const table of document.querySelectorAll("article table:has(> caption > .caption)")) {
      savable(table.caption.firstElementChild, "csv", table.id || "parameters", () => csvOf(table));
    }
    for (const figure of document.querySelectorAll("article figure[id]")) {
      const image = figure.querySelector(":scope > .figure-scroll > img");
      const kind = /^data:image\/(\w+)/.exec(image?.src)?.[1];
      if (kind) savable(figure.querySelector(":scope > figcaption"), kind, figure.id, () => fileOf(image));
    }
  }

  function runControls(cards) {
    const all = [...cards.children];
    if (all.length < 2) return;
    const text = (card, kind) => card.querySelector(`.${kind}`)?.textContent ?? null;
    const number = (card, kind) => { const found = text(card, kind); return found === null ? null : numberIn(found); };
    const lead = (card) => {
      const [ours, probe] = ["histoclip_patch", "linear_probe"].map((kind) => number(card, kind));
      return ours === null || probe === null ? null : ours - probe;
    };
    const by = (key, compare) => (a, b) => missingLast(key(a), key(b)) || compare(key(a), key(b));
    const highest = (a, b) => b - a;
    const orders = {
      "name": by((card) => text(card, "name"), compareText),
      "data set": by((card) => text(card, "dataset"), compareText),
      "date, newest first": by((card) => text(card, "made"), (a, b) => compareText(b, a)),
      "mAcc of HistoCLIP, highest first": by((card) => number(card, "histoclip_patch"), highest),
      "lead over the linear probe, largest first": by(lead, highest),
    };
    const controls = document.createElement("div");
    controls.className = "controls";
    controls.setAttribute("role", "search");
    controls.setAttribute("aria-label", "Runs");
    const field = (words, control) => {
      const label = document.createElement("label");
      label.append(words, control);
      controls.append(label);
      return control;
    };
    const filter = field("Filter by name, data set or encoder", document.createElement("input"));
    Object.assign(filter, { type: "search", autocomplete: "off", spellcheck: false });
    const order = field("Sort by", document.createElement("select"));
    for (const words of Object.keys(orders)) order.add(new Option(words));
    const count = document.createElement("output");
    controls.append(count);
    function refresh() {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const card of all) {
        const known = ["name", "dataset", "backbone"].map((kind) => text(card, kind)).join(" ").toLowerCase();
        card.hidden = !words.every((word) => known.includes(word));
      }
      cards.append(...[...all].sort(orders[order.value]));
      const shown = all.filter((card) => !card.hidden).length;
      count.textContent = shown === all.length ? `${all.length} runs` : `${shown} of ${all.length} runs`;
    }
    filter.addEventListener("input", refresh);
    order.addEventListener("change", refresh);
    cards.before(controls);
    refresh();
  }

  function followScroll(contents) {
    const wide = matchMedia("(min-width: 68rem)");
    const fold = contents.querySelector("details");
    fold.open = wide.matches;
    wide.addEventListener("change", () => { fold.open = wide.matches; });
    const entries = [...contents.querySelectorAll("a")].map((link) => (
      { link, heading: document.getElementById(decodeURIComponent(link.hash.slice(1))) }));
    let waiting = false;
    function mark() {
      waiting = false;
      const atEnd = innerHeight + scrollY >= root.scrollHeight - 2 && scrollY > 0;
      const passed = entries.filter(({ heading }) => heading.getBoundingClientRect().top < 120);
      const current = atEnd ? entries.at(-1) : passed.at(-1);
      for (const { link } of entries) link.removeAttribute("aria-current");
      if (!current) return;
      current.link.setAttribute("aria-current", "true");
      if (!wide.matches) return;
      // Scroll the list itself, never the page.
      const link = current.link.getBoundingClientRect();
      const list = contents.getBoundingClientRect();
      if (link.top < list.top) contents.scrollTop += link.top - list.top;
      if (link.bottom > list.bottom) contents.scrollTop += link.bottom - list.bottom;
    }
    addEventListener("scroll", () => {
      if (!waiting) requestAnimationFrame(mark);
      waiting = true;
    }, { passive: true });
    mark();
  }

  // Boxes that scroll sideways can be reached with the keyboard, those that have nothing to scroll need no stop.
  function scrollBoxes(boxes) {
    const mark = () => { for (const box of boxes) box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1; };
    addEventListener("load", mark);
    mark();
    const sizes = new ResizeObserver(mark); // also of a box that a fold or a switch has just shown
    for (const box of boxes) sizes.observe(box);
  }

  document.addEventListener("DOMContentLoaded", () => {
    themeToggle(document.getElementById("theme"));
    codeSwitch(document.getElementById("code"));
    document.querySelectorAll("article table").forEach(sortable);
    savables();
    document.querySelectorAll("ul.runs").forEach(runControls);
    const contents = document.querySelector("nav.contents");
    if (contents) followScroll(contents);
    scrollBoxes([...document.querySelectorAll(".table-scroll, .figure-scroll, .math-block")]);
  });
})();
