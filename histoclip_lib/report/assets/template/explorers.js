"use strict";
// Puts explorers in the place of their figures: one that shows attention over patches, one that filters a gallery.
// Every text is set as text; the figure stays in the document for paper and for readers without scripts.
(() => {
  function percent(fraction) {
    if (fraction > 0 && fraction < 0.005) return "< 1 %";
    return fraction < 1 && fraction > 0.995 ? "> 99 %" : `${Math.round(100 * fraction)} %`;
  }
  const count = (number) => number.toLocaleString("en");

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  // A name from users, which may be written from right to left.
  const named = (text, attributes = {}) => element("bdi", attributes, text);

  // What a decision was. p is the probability.
  const present = (p, data) => p >= data.threshold;
  const state = (label) => (label ? "present" : "absent");
  function outcome(label, p, data) {
    if (Boolean(label) === present(p, data)) return "right";
    return label ? "missed" : "invented";
  }
  const mark = (kind) => (kind === "right" ? "✓\u00a0right" : `✗\u00a0${kind}`);
  const sureness = (p) => Math.round(Math.abs(2 * p - 1) * 10000); // in hundredths of a per cent: whole numbers compare

  function slider(label, value) {
    const input = element("input", { type: "range", min: 0, max: 100, step: 5, value });
    const output = element("output", { "aria-hidden": "true" });
    const say = () => {
      output.textContent = `${input.value} %`;
      input.setAttribute("aria-valuetext", `${input.value} %`);
    };
    input.addEventListener("input", say);
    say();
    return { input, say, box: element("label", { class: "slider" }, element("span", {}, label), input, output) };
  }

  // A colour twice among the classes is told apart by stripes.
  function swatch(k, data) {
    const box = element("span", { class: striped(k, data) ? "swatch striped" : "swatch", "aria-hidden": "true" });
    box.style.setProperty("--class-colour", data.colours[k]);
    return box;
  }
  const striped = (k, data) => data.colours.indexOf(data.colours[k]) < k;

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  function pixelsOf(image) {
    const { naturalWidth: width, naturalHeight: height } = image;
    const context = element("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, width, height);
  }
  function canvasOf(pixels) {
    const canvas = element("canvas", { width: pixels.width, height: pixels.height });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  function greyOf(image) {
    const pixels = pixelsOf(image);
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data.fill((pixels.data[i] + pixels.data[i + 1] + pixels.data[i + 2]) / 3, i, i + 3);
    }
    return canvasOf(pixels);
  }

  // Class numbers of a mask: k + 1 for class k, 0 for none.
  function classMap(image, step) {
    const { width, height, data } = pixelsOf(image);
    const of = Uint8Array.from({ length: width * height }, (_, i) => Math.round(data[4 * i] / step));
    return { width, height, of };
  }

  // A map, bilinear between the centres of its cells, in the colours of `heat`.
  function heatOf(cells, grid, size, heat) {
    const pixels = new ImageData(size, size);
    const places = Array.from({ length: size }, (_, i) => {
      const at = Math.min(Math.max((i + 0.5) * grid / size - 0.5, 0), grid - 1);
      const low = Math.floor(at);
      return { low, high: Math.min(low + 1, grid - 1), part: at - low };
    });
    places.forEach((y, line) => places.forEach((x, column) => {
      const along = (row) => cells[row * grid + x.low] * (1 - x.part) + cells[row * grid + x.high] * x.part;
      const value = Math.round(along(y.low) * (1 - y.part) + along(y.high) * y.part);
      pixels.data.set([heat[3 * value], heat[3 * value + 1], heat[3 * value + 2], 255], 4 * (line * size + column));
    }));
    return canvasOf(pixels);
  }

  // The border of a class in a mask, along the edges of its pixels.
  function borderOf(mask, k, scale) {
    const path = new Path2D();
    const inside = (x, y) => mask.of[y * mask.width + x] === k + 1;
    for (let y = 0; y < mask.height; y += 1) {
      for (let x = 0; x < mask.width; x += 1) {
        if (x && inside(x, y) !== inside(x - 1, y)) {
          path.moveTo(x * scale, y * scale);
          path.lineTo(x * scale, (y + 1) * scale);
        }
        if (y && inside(x, y) !== inside(x, y - 1)) {
          path.moveTo(x * scale, y * scale);
          path.lineTo((x + 1) * scale, y * scale);
        }
      }
    }
    return path;
  }

  function drawMask(canvas, mask, data) {
    canvas.width = mask.width;
    canvas.height = mask.height;
    const pixels = new ImageData(mask.width, mask.height);
    const colours = data.colours.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    mask.of.forEach((value, i) => {
      const darker = value && striped(value - 1, data) && (i % mask.width + Math.floor(i / mask.width)) % 8 < 3;
      const colour = value ? colours[value - 1].map((part) => (darker ? part * 0.55 : part)) : [255, 255, 255];
      pixels.data.set([...colour, 255], 4 * i);
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  let groups = 0; // names of radio groups, and ids
  function radios(legend, options, className) {
    groups += 1;
    const name = `explorer-${groups}`;
    const inputs = options.map((_, i) => element("input", { type: "radio", name, value: i }));
    const labels = options.map((content, i) => element("label", {}, inputs[i], ...content));
    inputs[0].checked = true;
    return {
      inputs,
      value: () => inputs.findIndex((input) => input.checked),
      box: element("fieldset", { class: className }, element("legend", {}, legend), element("div", {}, ...labels)),
    };
  }

  function attention(data) {
    const { classes, patches } = data;
    const heat = bytes(data.heat);
    const hasMasks = patches.some((patch) => patch.mask);
    const wrongIn = (patch) => patch.labels.filter((label, k) => (
      outcome(label, patch.probabilities[k], data) !== "right")).length;

    const thumbnails = patches.map((patch) => {
      const wrong = wrongIn(patch);
      const remark = wrong ? `, ${wrong} wrong ${wrong === 1 ? "decision" : "decisions"}` : "";
      return element("img", { src: patch.image, alt: patch.name + remark, title: patch.name });
    });
    const choosePatch = radios("Choose a patch", patches.map((patch, i) => (
      [thumbnails[i], ...(wrongIn(patch) ? [element("span", { class: "badge", "aria-hidden": "true" }, "✗")] : [])]
    )), "choose-patch");

    const rows = classes.map((name, k) => ({
      truth: element("span", { class: "truth" }),
      fill: element("span"),
      p: element("span", { class: "p" }),
      kind: element("span", { class: "kind" }),
      name: named(name, { class: "name" }),
      swatch: swatch(k, data),
    }));
    const chooseClass = radios("Class, truth, and probability with the threshold at 0.5", rows.map((row) => [
      row.swatch, row.name, row.truth, element("span", { class: "bar", "aria-hidden": "true" }, row.fill), row.p,
      row.kind,
    ]), "choose-class");

    const picture = element("img", { alt: "" });
    const overlay = element("canvas", { role: "img", "aria-label": "Attention" });
    const maskCanvas = element("canvas", { role: "img", "aria-label": "Mask" });
    const about = element("p");
    const legend = element("p", { class: "legend" });
    const scale = element("span", { class: "heat", "aria-hidden": "true" });
    scale.style.backgroundImage = `linear-gradient(to right, ${[0, 32, 64, 96, 128, 160, 192, 224, 255].map((value) => (
      `rgb(${heat.slice(3 * value, 3 * value + 3).join(" ")})`)).join(", ")})`;
    const peak = element("span");
    const panel = (title, shown, ...below) => element("div", { class: "panel" },
      element("p", { class: "panel-title" }, title), shown, ...below);
    const overlayTitle = element("span");
    const maskPanel = panel("Mask", maskCanvas, legend);
    const panels = element("div", { class: "panels" }, panel("Patch", picture, about), maskPanel,
      panel(overlayTitle, overlay, element("p", { class: "legend" }, "lowest ", scale, " ", peak)));

    const opacity = slider("Opacity", 55);
    const outline = element("input", { type: "checkbox", checked: true });
    const controls = element("div", { class: "controls" }, opacity.box);
    if (hasMasks) controls.append(element("label", {}, outline, " Outline of the class in the mask"));
    const status = element("p", { class: "state", role: "status" });

    // What has been decoded of a patch, once.
    const decoded = new Map();
    function decode(i) {
      if (!decoded.has(i)) {
        decoded.set(i, (async () => {
          await thumbnails[i].decode();
          let mask = null;
          if (patches[i].mask) {
            const image = element("img", { src: patches[i].mask });
            await image.decode();
            mask = classMap(image, data.maskStep);
          }
          return { grey: greyOf(thumbnails[i]), mask, heats: new Map() };
        })());
      }
      return decoded.get(i);
    }

    function inWords(map) {
      const there = map.where ? `most attention ${map.where}` : "attention is even: nothing speaks for the class";
      if (map.area === null) return there;
      return `${there}; ${percent(map.inside)} of it in the mask, which covers ${percent(map.area)} of the patch`;
    }

    function describe() {
      const i = choosePatch.value();
      const patch = patches[i];
      rows.forEach((row, k) => {
        const p = patch.probabilities[k];
        const kind = outcome(patch.labels[k], p, data);
        row.truth.textContent = state(patch.labels[k]);
        row.fill.style.width = `${100 * p}%`;
        row.fill.style.setProperty("--class-colour", data.colours[k]);
        row.p.textContent = p.toFixed(2);
        row.kind.textContent = mark(kind);
        row.kind.classList.toggle("wrong", kind !== "right");
      });
      const k = chooseClass.value();
      const [p, map] = [patch.probabilities[k], patch.maps[k]];
      picture.src = patch.image;
      picture.alt = `Patch ${patch.name}`;
      about.replaceChildren(named(patch.name), ...(patch.group === null ? [] : [", group ", named(patch.group)]));
      overlayTitle.replaceChildren("Attention of ", named(classes[k]));
      peak.textContent = map.where ? `highest: ${map.peak.toLocaleString("en")} times an even spread` : "even";
      status.replaceChildren(`Patch ${i + 1} of ${patches.length}. `, named(classes[k]),
        `: ${state(patch.labels[k])}, p = ${p.toFixed(2)}, ${mark(outcome(patch.labels[k], p, data))}; ${inWords(map)}`,
        ...(patch.mask && map.area === null ? ["; the class is not in the mask"] : []), ".");
    }

    function paint(i, k, { grey, mask, heats }) {
      const [patch, scaled] = [patches[i], 2 * grey.width];
      if (!heats.has(k)) {
        heats.set(k, {
          colours: heatOf(bytes(patch.maps[k].cells), data.grid, grey.width, heat),
          border: mask && borderOf(mask, k, 2),
        });
      }
      const { colours, border } = heats.get(k);
      overlay.width = scaled;
      overlay.height = scaled;
      const context = overlay.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(grey, 0, 0, scaled, scaled);
      context.globalAlpha = opacity.input.value / 100;
      context.drawImage(colours, 0, 0, scaled, scaled);
      context.globalAlpha = 1;
      const drawn = Boolean(border && outline.checked && patch.maps[k].area !== null);
      if (drawn) {
        for (const [width, colour] of [[5, "white"], [2.5, data.colours[k]]]) {
          context.lineWidth = width;
          context.lineCap = "square";
          context.strokeStyle = colour;
          context.stroke(border);
        }
      }
      const remark = drawn ? "; with the outline of the mask" : "";
      overlay.setAttribute("aria-label",
        `Attention of ${classes[k]} over patch ${patch.name}: ${inWords(patch.maps[k])}${remark}.`);
      maskPanel.hidden = !mask;
      if (!mask) return;
      drawMask(maskCanvas, mask, data);
      const found = classes.flatMap((_, c) => (patch.maps[c].area === null ? [] : [c]));
      legend.replaceChildren(...found.map((c) => element("span", { class: "key" }, swatch(c, data), named(classes[c]),
        " ", element("span", {}, percent(patch.maps[c].area)))), ...(found.length ? [] : ["none of the classes"]));
      maskCanvas.setAttribute("aria-label", `Mask of patch ${patch.name}: ${
        found.map((c) => `${classes[c]} ${percent(patch.maps[c].area)}`).join(", ") || "none of the classes"}.`);
    }

    let wanted = 0;
    async function draw() {
      wanted += 1;
      const own = wanted;
      const [i, k] = [choosePatch.value(), chooseClass.value()];
      const parts = await decode(i);
      if (own === wanted) paint(i, k, parts); // nothing newer was asked for meanwhile
    }

    for (const input of [...choosePatch.inputs, ...chooseClass.inputs]) {
      input.addEventListener("change", () => { describe(); draw(); });
    }
    for (const input of [opacity.input, outline]) input.addEventListener("input", draw);
    describe();
    draw();
    return element("div", { class: "explorer-live", role: "group", "aria-label": "Attention over patches" },
      choosePatch.box, panels, status, element("div", { class: "choices" }, chooseClass.box, controls));
  }

  const STEP = 40; // thumbnails that appear at once

  function gallery(data) {
    const { classes, patches } = data;
    const kinds = ["missed", "invented", "right"];
    groups += 1;
    const id = `explorer-${groups}`;
    const chooseClass = element("select", {}, element("option", { value: -1 }, "all classes"),
      ...classes.map((name, k) => element("option", { value: k }, name)));
    const boxes = kinds.map((kind) => element("input", { type: "checkbox", checked: kind !== "right" }));
    const from = slider("Confidence from", 0);
    const to = slider("Confidence to", 100);
    const status = element("p", { class: "state", role: "status" });
    const list = element("ul", { class: "thumbnails" });
    const more = element("button", { type: "button" });
    let [fitting, shown] = [[], 0];

    // Decisions of a patch that fit, the surest first. A patch counts as right where every class looked at is.
    function fits(patch) {
      const k = Number(chooseClass.value);
      const looked = classes.map((_, c) => c).filter((c) => k < 0 || c === k);
      const decisions = looked.map((c) => {
        const p = patch.probabilities[c];
        return { k: c, p, kind: outcome(patch.labels[c], p, data), sure: sureness(p) };
      });
      const allRight = decisions.every(({ kind }) => kind === "right");
      return decisions
        .filter(({ kind }) => boxes[kinds.indexOf(kind)].checked && (kind !== "right" || allRight))
        .sort((one, other) => other.sure - one.sure);
    }

    const picture = element("img", { alt: "" });
    const title = element("p", { id: `${id}-title`, class: "panel-title" });
    const lines = element("tbody");
    const [previous, next, close] = ["Previous", "Next", "Close"].map((text) => (
      element("button", { type: "button" }, text)));
    const dialog = element("dialog", { class: "explorer-patch", "aria-labelledby": `${id}-title` }, title,
      element("div", { class: "patch" }, picture, element("table", {}, element("thead", {}, element("tr", {},
        ...["Class", "Truth", "p", "Decision"].map((text) => (
          element("th", { scope: "col", class: text === "p" ? "number" : null }, text))))), lines)),
      element("p", { class: "turn-patch" }, previous, next, close));
    let at = 0;
    function open(place) {
      at = place;
      const { patch } = fitting[at];
      picture.src = patch.image;
      picture.alt = `Patch ${patch.name}`;
      title.replaceChildren(named(patch.name), ...(patch.group === null ? [] : [", group ", named(patch.group)]),
        ` (${at + 1} of ${fitting.length})`);
      lines.replaceChildren(...classes.map((name, k) => {
        const [label, p] = [patch.labels[k], patch.probabilities[k]];
        const kind = outcome(label, p, data);
        return element("tr", {}, element("th", { scope: "row" }, named(name)), element("td", {}, state(label)),
          element("td", { class: "number" }, p.toFixed(2)),
          element("td", { class: kind === "right" ? null : "wrong" }, mark(kind)));
      }));
      previous.disabled = at === 0;
      next.disabled = at === fitting.length - 1;
      if (!dialog.open) dialog.showModal();
    }
    const turn = (by) => { if (fitting[at + by]) open(at + by); };
    previous.addEventListener("click", () => turn(-1));
    next.addEventListener("click", () => turn(1));
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") turn(-1);
      if (event.key === "ArrowRight") turn(1);
    });
    dialog.addEventListener("close", () => {
      while (shown <= at) show();
      list.children[at].querySelector("button").focus();
    });

    function thumbnail({ patch, decisions }, place) {
      const [{ k, p, kind }] = decisions;
      const words = `${kind}, ${p.toFixed(2)}`;
      const image = element("img", { src: patch.image, alt: `${patch.name}: ` });
      const button = element("button", { type: "button", title: patch.name }, image,
        element("span", {}, named(classes[k]), element("br"), words));
      button.addEventListener("click", () => open(place));
      return element("li", {}, button);
    }
    function show() {
      const following = fitting.slice(shown, shown + STEP);
      list.append(...following.map((own, i) => thumbnail(own, shown + i)));
      shown += following.length;
      const left = fitting.length - shown;
      more.textContent = `Show ${Math.min(STEP, left)} more`;
      more.hidden = !left;
    }

    function filter() {
      const [low, high] = [from, to].map(({ input }) => 100 * Number(input.value));
      fitting = patches
        .map((patch) => ({ patch, decisions: fits(patch) }))
        .filter(({ decisions: [surest] }) => surest && surest.sure >= low && surest.sure <= high)
        .sort((one, other) => other.decisions[0].sure - one.decisions[0].sure);
      shown = 0;
      list.replaceChildren();
      show();
      status.textContent = fitting.length
        ? `${count(fitting.length)} of ${count(patches.length)} patches fit.`
        : `No patch fits, of ${count(patches.length)}. Allow more kinds of decisions or a wider range of confidence.`;
    }
    // The two ends push each other.
    from.input.addEventListener("input", () => {
      to.input.value = Math.max(to.input.value, from.input.value);
      to.say();
    });
    to.input.addEventListener("input", () => {
      from.input.value = Math.min(to.input.value, from.input.value);
      from.say();
    });
    for (const input of [chooseClass, ...boxes, from.input, to.input]) input.addEventListener("input", filter);
    more.addEventListener("click", () => {
      const first = shown;
      show();
      list.children[first].querySelector("button").focus();
    });
    filter();
    return element("div", { class: "explorer-live", role: "group", "aria-label": "Gallery of patches" },
      element("div", { class: "filters" },
        element("label", {}, "Class ", chooseClass),
        element("fieldset", { class: "kinds" }, element("legend", {}, "Decisions"),
          ...kinds.map((kind, i) => element("label", {}, boxes[i], ` ${kind}`))),
        element("div", { class: "range" }, from.box, to.box)),
      element("p", { class: "hint" }, `${data.held} The number is the probability p; confidence is 0 % at p = 0.5 and `
        + "100 % at p = 0 and p = 1."),
      status, list, more, dialog);
  }

  const makers = {
    "application/vnd.histoclip.attention+json": attention,
    "application/vnd.histoclip.gallery+json": gallery,
  };
  document.addEventListener("DOMContentLoaded", () => {
    for (const figure of document.querySelectorAll("figure.explorer")) {
      const data = JSON.parse(figure.querySelector(".explorer-data").textContent);
      figure.prepend(makers[figure.dataset.explorer](data));
      figure.classList.add("live");
    }
  });
})();
