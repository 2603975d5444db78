"use strict";
// The page reads fully without this script: it adds the theme toggle, the switch for all code, the mark in the
// contents list and keyboard stops at boxes that scroll. The theme is set at once, before anything is drawn; the rest waits for the document.
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
    const allOpen = () => folds.every((fold) => fold.open);
    const label = () => { button.textContent = allOpen() ? "Fold all code" : "Show all code"; };
    button.addEventListener("click", () => {
      const open = !allOpen();
      for (const fold of folds) fold.open = open;
      label();
    });
    for (const fold of folds) fold.addEventListener("toggle", label);
    button.hidden = false;
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
    const fold = document.getElementById("fold");
    if (fold) codeSwitch(fold);
    const contents = document.querySelector("nav.contents");
    if (contents) followScroll(contents);
    scrollBoxes([...document.querySelectorAll(".table-scroll, .figure-scroll, .math-block")]);
  });
})();
