// Explorers, for pages and for JupyterLab: one ES module. On a page each takes the place of its figure and reads the
// JSON beside it; in JupyterLab anywidget calls `render`, and a kernel answers questions. Every text is set as text.

function percent(fraction) {
  if (fraction > 0 && fraction < 0.005) return "< 1%";
  return fraction < 1 && fraction > 0.995 ? "> 99%" : `${Math.round(100 * fraction)}%`;
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
const button = (text) => element("button", { type: "button" }, text);
const picker = (...options) => element("select", {}, ...options.map(([value, text]) => element("option", { value }, text)));
function explorer(label, ...children) {
  const box = element("div", { class: "explorer-live", role: "group", "aria-label": label }, ...children);
  // JupyterLab takes the keys of its shortcuts from whatever has the focus and does not bear this.
  box.addEventListener("focusin", ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", ""));
  return box;
}

let explorers = 0; // names of radio groups, and ids
function uniqueName() {
  explorers += 1;
  return `explorer-${explorers}`;
}

// A table of nodes and texts, in a box that scrolls; the first cell of each line is its heading.
function table(label, header, lines) {
  const cells = (line) => line.map((cell, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, cell));
  return element("div", { class: "table-scroll", role: "group", tabindex: 0, "aria-label": label },
    element("table", {}, element("thead", {}, element("tr", {}, ...header.map((cell) => (
      cell === "" ? element("td") : element("th", { scope: "col" }, cell))))),
    element("tbody", {}, ...lines.map((line) => element("tr", {}, ...cells(line))))));
}

// What a decision was. p is the probability.
const state = (label) => (label === null ? "not known" : label ? "present" : "absent");
const [CORRECT, UNKNOWN] = ["correct", "not known"];
const isWrong = (kind) => kind !== CORRECT && kind !== UNKNOWN;
function outcome(label, p, data) {
  if (label === null) return UNKNOWN;
  if (Boolean(label) === (p >= data.threshold)) return CORRECT;
  return label ? "false negative" : "false positive";
}
const mark = (kind) => `${kind === CORRECT ? "✓" : isWrong(kind) ? "✗" : "?"}\u00a0${kind.replace(" ", "\u00a0")}`;
const confidence = (p) => Math.round(Math.abs(2 * p - 1) * 10000); // in hundredths of a per cent: whole numbers compare

function slider(label, value, { min = 0, max = 100, step = 5, write = (number) => `${number}%` } = {}) {
  const input = element("input", { type: "range", min, max, step, value });
  const output = element("output", { "aria-hidden": "true" });
  const say = () => {
    output.textContent = write(input.value, input.max);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", say);
  say();
  const set = (number) => { input.value = number; say(); };
  return { input, set, box: element("label", { class: "slider" }, element("span", {}, label), input, output) };
}

// A colour twice among the classes is told apart by stripes.
const striped = (k, data) => data.colours.indexOf(data.colours[k]) < k;
function swatch(k, data) {
  const box = element("span", { class: striped(k, data) ? "swatch striped" : "swatch", "aria-hidden": "true" });
  box.style.setProperty("--class-colour", data.colours[k]);
  return box;
}
const classNode = (k, data) => element("span", { class: "key" }, swatch(k, data), named(data.classes[k]));

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

async function loaded(address) {
  const image = element("img", { src: address });
  await image.decode();
  return image;
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

// Class numbers of a mask: k + 1 for class k, 0 for none.
async function classMap(address, data) {
  const { width, height, data: pixels } = pixelsOf(await loaded(address));
  return { width, height, of: Uint8Array.from({ length: width * height }, (_, i) => Math.round(pixels[4 * i] / data.maskStep)) };
}

// A map, bilinear between the centres of its cells, in the colours of `heat`, clear where it is 0.
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
    pixels.data.set([heat[3 * value], heat[3 * value + 1], heat[3 * value + 2], value], 4 * (line * size + column));
  }));
  return canvasOf(pixels);
}

// The border of a class in a mask, along the edges of its pixels, as an SVG path.
function borderOf(mask, k) {
  const steps = [];
  const inside = (x, y) => mask.of[y * mask.width + x] === k + 1;
  for (let y = 0; y < mask.height; y += 1) {
    for (let x = 0; x < mask.width; x += 1) {
      if (x && inside(x, y) !== inside(x - 1, y)) steps.push(`M${x} ${y}v1`);
      if (y && inside(x, y) !== inside(x, y - 1)) steps.push(`M${x} ${y}h1`);
    }
  }
  return steps.join("");
}
// The same as a picture; its lines keep their width at any zoom.
function outlineOf(mask, k, data) {
  const draw = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const picture = draw("svg", { viewBox: `0 0 ${mask.width} ${mask.height}`, "aria-hidden": "true" });
  const d = borderOf(mask, k);
  picture.append(draw("path", { d, class: "halo" }),
    draw("path", { d, stroke: data.colours[k], "stroke-dasharray": striped(k, data) ? "5 3" : "none" }));
  return picture;
}
function drawBorder(context, path, k, data, width) {
  context.globalAlpha = 1;
  for (const [colour, wide] of [["#fff", 2 * width], [data.colours[k], width]]) {
    context.strokeStyle = colour;
    context.lineWidth = wide;
    context.setLineDash(colour !== "#fff" && striped(k, data) ? [3.2 * width, 2 * width] : []);
    context.stroke(path);
  }
}

function maskOf(mask, data) {
  const pixels = new ImageData(mask.width, mask.height);
  const colours = data.colours.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  mask.of.forEach((value, i) => {
    const darker = value && striped(value - 1, data) && (i % mask.width + Math.floor(i / mask.width)) % 8 < 3;
    const colour = value ? colours[value - 1].map((part) => (darker ? part * 0.55 : part)) : [255, 255, 255];
    pixels.data.set([...colour, 255], 4 * i);
  });
  return canvasOf(pixels);
}

// Drag, two fingers and the wheel on a node; places are CSS pixels of it. `zoom(factor, x, y)` says whether it changed
// anything: where not, the page scrolls.
function movable(node, { zoom, move, point = () => {}, click = () => {} }) {
  const pointers = new Map();
  let dragged = 0;
  const at = (event) => {
    const { left, top } = node.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  const spread = () => {
    const [[x, y], [u, v]] = [...pointers.values()];
    return { far: Math.hypot(x - u, y - v), x: (x + u) / 2, y: (y + v) / 2 };
  };
  node.addEventListener("dragstart", (event) => event.preventDefault()); // the browser would carry the picture away
  node.addEventListener("pointerdown", (event) => {
    if (event.button) return; // another button opens a menu
    node.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    dragged = pointers.size > 1 ? Infinity : 0;
  });
  node.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (pointers.has(event.pointerId)) {
      const before = pointers.size > 1 ? spread() : null;
      const [from, fromY] = pointers.get(event.pointerId);
      pointers.set(event.pointerId, [x, y]);
      if (before) {
        const after = spread();
        zoom(after.far / before.far, after.x, after.y);
        move(after.x - before.x, after.y - before.y);
      } else {
        dragged += Math.hypot(x - from, y - fromY);
        move(x - from, y - fromY);
      }
    }
    point(x, y);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    node.addEventListener(kind, (event) => {
      if (pointers.delete(event.pointerId) && kind === "pointerup" && dragged < 4) click(...at(event));
    });
  }
  node.addEventListener("wheel", (event) => {
    if (zoom(2 ** (-event.deltaY / 300), ...at(event))) event.preventDefault();
  }, { passive: false });
}
const ZOOM_KEYS = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 };
const forBrowser = (event) => event.ctrlKey || event.metaKey || event.altKey; // as when it zooms or goes back

// A round length that fills up to a quarter of `width` pixels, in pixels and in words.
function scaleBar(um, width) {
  const wanted = 0.25 * width * um;
  const ten = 10 ** Math.floor(Math.log10(wanted));
  const length = [5, 2, 1].find((step) => step * ten <= wanted) * ten;
  return { pixels: length / um, text: length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm` };
}

function radios(legend, options, className) {
  const name = uniqueName();
  const list = element("div");
  options.forEach((content, value) => list.append(element("label", {}, element("input", { type: "radio", name, value }), ...content)));
  const value = () => Number(list.querySelector(":checked").value);
  const set = (k) => { list.querySelectorAll("input")[k].checked = true; };
  set(0);
  return { value, set, box: element("fieldset", { class: className }, element("legend", {}, legend), list) };
}

const panel = (title, ...shown) => element("div", { class: "panel" }, element("p", { class: "panel-title" }, title), ...shown);
const aboutPatch = (patch) => [named(patch.name), ...["group", "part", "tissue"].flatMap((what) => (
  patch[what] === null || patch[what] === undefined ? [] : [`, ${what} `, named(patch[what])]))];

// Return a function that calls `paint` with what `load` gives, where nothing newer was asked for meanwhile.
function latest(load, paint, fail) {
  let wanted = 0;
  return async (...given) => {
    wanted += 1;
    const own = wanted;
    try {
      const found = await load(...given);
      if (own === wanted) paint(found);
    } catch (error) {
      if (own === wanted) fail(error.message);
    }
  };
}

// The viewer of patches, on the pages of the data, of the errors and of attention. Pictures are listed, filtered and
// opened; the opened ones, of one patch or of two side by side, zoom and move together. A page holds some of the
// patches; in JupyterLab a kernel gives the pixels of any.
const STEP = 24; // pictures that appear at once
const MASK = -1; // beside the numbers of the maps

// Which patches are listed: a test of a decision, and whether it needs probabilities.
const WANTED = {
  all: ["all patches", () => true, false],
  present: ["class present", ({ label }) => label === 1, false],
  absent: ["class absent", ({ label }) => label === 0, false],
  errors: ["errors", ({ kind }) => isWrong(kind), true],
  "false negative": ["false negatives", ({ kind }) => kind === "false negative", true],
  "false positive": ["false positives", ({ kind }) => kind === "false positive", true],
  correct: ["correct in all classes", ({ kind }, allRight) => allRight && kind === CORRECT, true],
};

function viewer(data, ask) {
  const { classes, patches } = data;
  const [scored, masked] = [patches.some(({ probabilities }) => probabilities), patches.some(({ mask }) => mask)];
  const groups = [...new Set(patches.map(({ group }) => group).filter((group) => group !== null))]
    .sort(new Intl.Collator("en", { numeric: true }).compare);
  const heat = bytes(data.heat);

  const chooseClass = picker([-1, "any class"], ...classes.map((name, k) => [k, name]));
  const chooseWanted = picker(...Object.entries(WANTED).flatMap(([name, [text, , needs]]) => (needs && !scored ? [] : [[name, text]])));
  chooseWanted.value = data.wanted;
  const chooseGroup = picker([-1, "any group"], ...groups.map((name, i) => [i, name]));
  const least = slider("Covered area at least", 0);
  const [from, to] = [slider("Confidence from", 0), slider("Confidence to", 100)];
  const over = element("input", { type: "checkbox", checked: data.maps.length > 0 });
  const status = element("p", { class: "state", role: "status" });
  const list = element("ul", { class: "pictures" });
  const more = button("");
  let [fitting, shown] = [[], 0]; // patches with the decision that makes them fit

  function decision(patch, k) {
    const [label, p] = [patch.labels[k], patch.probabilities?.[k]];
    return { k, label, p, kind: p === undefined ? UNKNOWN : outcome(label, p, data), confidence: p === undefined ? 0 : confidence(p) };
  }
  // The decision of a patch that fits, the most confident error before others; undefined where none fits.
  function fits(patch) {
    const k = Number(chooseClass.value);
    const all = classes.map((_, c) => decision(patch, c));
    const allRight = !all.some(({ kind }) => isWrong(kind));
    const areas = k < 0 ? patch.areas : patch.areas && [patch.areas[k]];
    if (chooseGroup.value >= 0 && patch.group !== groups[chooseGroup.value]) return undefined;
    if (least.input.value > 0 && !(areas && Math.max(...areas) >= least.input.value / 100)) return undefined;
    const [found] = all.filter((own) => (k < 0 || own.k === k) && WANTED[chooseWanted.value][1](own, allRight))
      .sort((one, other) => isWrong(other.kind) - isWrong(one.kind) || other.confidence - one.confidence || other.label - one.label);
    const inRange = found && found.confidence >= 100 * from.input.value && found.confidence <= 100 * to.input.value;
    return inRange ? found : undefined;
  }
  function summary(patch, { k, p, kind }) {
    if (patch.note) return [patch.note];
    return scored ? [named(classes[k]), element("br"), `${kind}, ${p.toFixed(2)}`]
      : [named(classes.filter((_, c) => patch.labels[c]).join(", ") || (patch.labels.includes(null) ? "no known label" : "no label"))];
  }

  // A patch with its pixels, and what was decoded of it, once.
  const prepared = new Map();
  async function prepare(patch) {
    if (ask && !patch.image?.startsWith("data:")) Object.assign(patch, await ask("patch", patch.i));
    if (!prepared.has(patch)) prepared.set(patch, { patch, mask: patch.mask && await classMap(patch.mask, data) });
    return prepared.get(patch);
  }
  // The picture of a patch, and over it its mask, or a map, and the outline of class k.
  function layers({ patch, mask }, k, map, { opaque = 0.7, outlined = true } = {}) {
    const picture = element("img", { src: patch.image, alt: "" });
    const box = element("div", { class: "layers" }, picture);
    picture.addEventListener("error", () => box.append(element("span", { class: "state" }, `${patch.image} is not beside this page.`)));
    if (map === MASK) {
      box.append(maskOf(mask, data));
      box.lastChild.classList.add("mask");
    }
    if (map >= 0) {
      const shade = heatOf(bytes(patch.maps[map][k].cells), data.grid, 8 * data.grid, heat);
      shade.style.opacity = opaque;
      box.append(shade);
    }
    if (outlined && mask && patch.areas[k] && map !== MASK) box.append(outlineOf(mask, k, data));
    return box;
  }

  function listed({ patch, found }, place) {
    const box = element("div", { class: "picture" });
    const opener = element("button", { type: "button", title: patch.name }, box,
      element("span", {}, ...summary(patch, found)));
    opener.setAttribute("aria-label", `${patch.name}: ${opener.textContent}`);
    opener.addEventListener("click", () => open(place));
    prepare(patch).then((own) => {
      box.style.aspectRatio = patch.size.join(" / ");
      box.append(layers(own, found.k, over.checked && data.maps.length ? 0 : undefined, { outlined: over.checked }));
    }, (error) => box.append(error.message));
    return element("li", {}, opener);
  }
  function show() {
    const following = fitting.slice(shown, shown + STEP);
    list.append(...following.map((own, i) => listed(own, shown + i)));
    shown += following.length;
    const left = fitting.length - shown;
    more.textContent = `Show ${Math.min(STEP, left)} more`;
    more.hidden = !left;
  }
  async function find() {
    const unread = ask && least.input.value > 0 && patches.some(({ areas }) => areas === undefined);
    if (unread) (await ask("areas")).forEach((areas, i) => { patches.find((patch) => patch.i === i).areas ??= areas; });
    const found = patches.map((patch) => ({ patch, found: fits(patch) })).filter((own) => own.found);
    const inOrder = chooseClass.value < 0 && chooseWanted.value === "all";
    return inOrder ? found : found.sort((one, other) => other.found.confidence - one.found.confidence);
  }
  const fail = (message) => { status.textContent = message; };
  const filter = latest(find, (found) => {
    [fitting, shown] = [found, 0];
    list.replaceChildren();
    show();
    status.textContent = fitting.length ? `${count(fitting.length)} of ${count(patches.length)} patches match the filters.`
      : `No patch matches the filters, of ${count(patches.length)}.`;
  }, fail);
  // The two ends push each other.
  from.input.addEventListener("input", () => to.set(Math.max(to.input.value, from.input.value)));
  to.input.addEventListener("input", () => from.set(Math.min(to.input.value, from.input.value)));
  for (const input of [chooseClass, chooseWanted, chooseGroup, over, least.input, from.input, to.input]) input.addEventListener("input", filter);
  more.addEventListener("click", () => {
    const first = shown;
    show();
    list.children[first].querySelector("button").focus();
  });

  // The opened view.
  const id = uniqueName();
  const title = element("p", { id, class: "panel-title", role: "status" });
  const rows = element("div", { class: "views" });
  const lines = classes.map((name, k) => ({ swatch: swatch(k, data), name: named(name, { class: "name" }), told: element("span") }));
  const chooseShown = radios("Class", lines.map((line) => [line.swatch, line.name, line.told]), "choose-class");
  const opacity = slider("Opacity", 70);
  const outline = element("input", { type: "checkbox", checked: true });
  const link = element("a", { hidden: Boolean(ask) }, "Link to this view");
  const [zoomIn, zoomOut, fit, keep, previous, next, close] = [
    "Zoom in", "Zoom out", "Whole patch", "", "Previous", "Next", "Close"].map(button);
  const dialog = element("dialog", { class: "explorer-patch viewer", "aria-labelledby": id }, title, rows,
    element("div", { class: "choices" }, chooseShown.box, element("div", { class: "overlay-options" },
      element("div", { hidden: !data.maps.length }, opacity.box),
      element("label", { hidden: !masked }, outline, " Outline of the class in the mask"),
      element("div", { class: "filters" }, zoomIn, zoomOut, fit), link)),
    element("p", { class: "turn-patch" }, previous, next, keep, close));
  close.autofocus = true; // the first radio button would take the arrow keys
  const view = { zoom: 1, x: 0, y: 0 }; // of every picture; lengths in parts of its side
  let [series, at, kept, bars] = [[], 0, null, []]; // the patches that were listed when one of them was opened

  function place() {
    for (const axis of ["x", "y"]) view[axis] = Math.min(Math.max(view[axis], 1 - view.zoom), 0);
    rows.classList.toggle("zoomed", view.zoom > 1);
    for (const [name, value] of Object.entries(view)) rows.style.setProperty(`--${name}`, value);
    for (const { lens, bar, um } of bars) {
      const { pixels, text } = scaleBar(um / lens.clientWidth / view.zoom, lens.clientWidth);
      const line = element("span");
      line.style.width = `${pixels}px`;
      bar.replaceChildren(text, line);
    }
  }
  function zoom(factor, x = 0.5, y = 0.5) {
    const zoomed = Math.min(Math.max(view.zoom * factor, 1), 16);
    if (zoomed === view.zoom) return false;
    const grown = zoomed / view.zoom;
    Object.assign(view, { zoom: zoomed, x: x - (x - view.x) * grown, y: y - (y - view.y) * grown });
    place();
    return true;
  }
  const move = (x, y) => { view.x += x; view.y += y; place(); };

  function inWords(map) {
    const there = map.where ? `most ${map.where}, ${map.peak.toLocaleString("en")} × uniform` : "uniform: there is no evidence for the class";
    return map.inside === null ? there : `${there}; ${percent(map.inside)} of it in the mask`;
  }
  const legend = ({ patch }) => classes.flatMap((_, k) => (patch.areas[k]
    ? [element("span", { class: "key" }, swatch(k, data), named(classes[k]), " ", element("span", {}, percent(patch.areas[k])))] : []));
  function decided(patch, k) {
    const { label, p, kind } = decision(patch, k);
    return p === undefined ? state(label) : `${state(label)}, p = ${p.toFixed(2)}, ${mark(kind)}`;
  }
  function row(own, k, alone) {
    const { patch, mask } = own;
    const picture = (name, map, words, ...caption) => {
      const lens = element("div", { class: "lens", role: "img", "aria-label": `${name} of patch ${patch.name}${words}` },
        layers(own, k, map, { opaque: opacity.input.value / 100, outlined: outline.checked }));
      lens.style.aspectRatio = patch.size.join(" / ");
      const parts = (x, y) => [x / lens.clientWidth, y / lens.clientHeight];
      movable(lens, { zoom: (factor, x, y) => zoom(factor, ...parts(x, y)), move: (x, y) => move(...parts(x, y)) });
      return panel(name, lens, element("p", { class: "legend" }, ...caption));
    };
    const first = picture("Patch", undefined, "", element("span", {}, ...aboutPatch(patch)),
      ...(alone ? [] : [element("span", {}, named(classes[k]), `: ${decided(patch, k)}`)]));
    if (patch.um) {
      const bar = element("span", { class: "scale-bar" });
      const lens = first.querySelector(".lens");
      lens.append(bar);
      bars.push({ lens, bar, um: patch.um });
    }
    const found = mask ? legend(own) : [];
    return element("div", { class: "panels" }, first,
      ...(mask ? [picture("Mask", MASK, `: ${found.map((key) => key.textContent).join(", ") || "none of the classes"}`,
        ...(found.length ? found : ["none of the classes"]))] : []),
      ...data.maps.map((name, number) => {
        const words = inWords(patch.maps[number][k]);
        return picture(name, number, `, ${classes[k]}: ${words}`, words);
      }));
  }
  const paint = latest((...opened) => Promise.all(opened.map(prepare)), (opened) => {
    const [{ patch }, k] = [opened.at(-1), chooseShown.value()];
    bars = [];
    rows.replaceChildren(...opened.map((own) => row(own, k, opened.length === 1)));
    lines.forEach(({ told }, c) => {
      told.textContent = decided(patch, c);
      told.classList.toggle("wrong", isWrong(decision(patch, c).kind));
    });
    title.replaceChildren(`Patch ${count(at + 1)} of ${count(series.length)}. `, named(classes[k]), `: ${decided(patch, k)}`);
    place();
  }, (message) => { title.textContent = message; });
  function draw() {
    const { patch } = series[at];
    [previous.disabled, next.disabled] = [at === 0, at === series.length - 1];
    keep.textContent = kept ? "Stop comparing" : "Compare";
    link.href = new URL(`#patch=${encodeURIComponent(patch.name)};class=${encodeURIComponent(classes[chooseShown.value()])}`, window.location.href);
    paint(...(kept && kept !== patch ? [kept, patch] : [patch]));
  }
  function open(place_, k = fitting[place_].found.k) {
    [series, at] = [fitting, place_];
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    chooseShown.set(k);
    if (!dialog.open) dialog.showModal();
    draw();
  }
  const turn = (by) => { if (series[at + by]) { at += by; draw(); } };
  for (const [node, act] of [[previous, () => turn(-1)], [next, () => turn(1)], [close, () => dialog.close()],
    [zoomIn, () => zoom(1.5)], [zoomOut, () => zoom(1 / 1.5)], [fit, () => zoom(0)],
    [keep, () => { kept = kept ? null : series[at].patch; draw(); }]]) node.addEventListener("click", act);
  for (const node of [chooseShown.box, opacity.input, outline]) node.addEventListener("input", draw);
  dialog.addEventListener("keydown", (event) => {
    const [part, plain] = [0.1, !event.target.matches("input")]; // arrow keys belong to radio buttons and sliders
    const arrows = { ArrowLeft: [part, 0], ArrowRight: [-part, 0], ArrowUp: [0, part], ArrowDown: [0, -part] };
    if (forBrowser(event)) return;
    if (event.key in ZOOM_KEYS) zoom(ZOOM_KEYS[event.key]);
    else if (event.shiftKey && event.key in arrows) move(...arrows[event.key]);
    else if (plain && event.key === "ArrowLeft") turn(-1);
    else if (plain && event.key === "ArrowRight") turn(1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => {
    kept = null;
    const back = fitting.findIndex(({ patch }) => patch === series[at].patch);
    if (back < 0) return; // the filters have answered meanwhile, and the patch is no longer listed
    while (shown <= back) show();
    list.children[back].querySelector("button").focus();
  });
  new ResizeObserver(place).observe(rows);

  // A link of the page to a patch, and to a class of it.
  async function follow() {
    const [name, of] = ["patch", "class"].map((what) => new URLSearchParams(window.location.hash.slice(1).replaceAll(";", "&")).get(what));
    if (!patches.some((patch) => patch.name === name)) return;
    if (!fitting.some(({ patch }) => patch.name === name)) {
      for (const [select, value] of [[chooseClass, -1], [chooseWanted, "all"], [chooseGroup, -1]]) select.value = value;
      for (const [{ set }, value] of [[least, 0], [from, 0], [to, 100]]) set(value);
      await filter();
    }
    open(fitting.findIndex(({ patch }) => patch.name === name), classes.includes(of) ? classes.indexOf(of) : undefined);
  }
  filter().then(() => { if (!ask) follow(); });
  if (!ask) window.addEventListener("hashchange", follow);
  return explorer(data.title,
    element("div", { class: "filters" }, element("label", {}, "Class ", chooseClass), element("label", {}, "Show ", chooseWanted),
      element("label", { hidden: !groups.length }, "Group ", chooseGroup),
      element("div", { hidden: !masked }, least.box),
      element("div", { class: "range", hidden: !scored }, from.box, to.box),
      element("label", { hidden: !masked && !data.maps.length }, over,
        data.maps.length ? ` ${data.maps[0]} over the patches` : " Outlines over the patches")),
    element("p", { class: "hint" }, ask ? "" : `${data.held} `, scored ? "The number is the probability p; confidence is 0% at p = 0.5 and "
      + "100% at p = 0 and p = 1. " : "", "A click opens a patch; then the arrow keys turn, the wheel zooms."),
    status, list, more, dialog);
}

// The threshold of each class can be moved. `data.counts[k]` holds, for cuts from 0 to 1 in steps of 0.01, the patches
// without and with class k that score at or above it.
function thresholds(data) {
  const { classes } = data;
  const start = Math.round(100 * data.threshold);
  const options = { max: 100, step: 1, write: (value) => (value / 100).toFixed(2) };
  const all = slider("All classes at", start, options);
  const sliders = classes.map((name) => slider(element("span", { class: "unseen" }, "Threshold of ", named(name)), start, options));
  const reset = button(`Reset to ${data.threshold}`);
  const [summary, table_] = [element("div"), table("Decisions of each class", ["Class", "Threshold",
    ...["true positives", "false positives", "false negatives", "true negatives"].map((words) => (
      element("abbr", { title: words }, words.split(" ").map(([letter]) => letter.toUpperCase()).join("")))),
    "accuracy", "sensitivity", "specificity", "precision", "F1"], classes.map((_, k) => [classNode(k, data), sliders[k].box, ...Array(9).fill("")]))];
  const cells = [...table_.querySelectorAll("tbody tr")].map((line) => [...line.children].slice(2));
  const fixed = (value) => (Number.isFinite(value) ? value.toFixed(3) : "—");

  function scores(k, cut) {
    const [fp, tp] = data.counts[k].map((side) => side[cut]);
    const [absent, present] = data.counts[k].map((side) => side[0]);
    const rates = [(tp + absent - fp) / (absent + present), tp / present, (absent - fp) / absent, tp / (tp + fp), 2 * tp / Math.max(tp + fp + present, 1)];
    return { counts: [tp, fp, present - tp, absent - fp], rates };
  }
  const mean = (cuts, i) => cuts.reduce((sum, cut, k) => sum + scores(k, cut).rates[i], 0) / cuts.length;
  function draw() {
    const cuts = sliders.map(({ input }) => Number(input.value));
    cuts.forEach((cut, k) => {
      const own = scores(k, cut);
      [...own.counts.map(count), ...own.rates.map(fixed)].forEach((text, i) => { cells[k][i].textContent = text; });
    });
    summary.replaceChildren(table("Means over the classes", ["", "now", `at ${data.threshold}`, "change"],
      [["mAcc", 0], ["sensitivity", 1], ["specificity", 2], ["macro F1", 4]].map(([name, i]) => {
        const [now, before] = [mean(cuts, i), mean(cuts.map(() => start), i)];
        const change = Number((now - before).toFixed(3));
        return [name, fixed(now), fixed(before), `${Number.isNaN(change) ? "" : change < 0 ? "−" : "+"}${fixed(Math.abs(change))}`];
      })));
  }
  const moveAll = (value) => { for (const own of [all, ...sliders]) own.set(value); draw(); };
  for (const { input } of sliders) input.addEventListener("input", draw);
  all.input.addEventListener("input", () => moveAll(all.input.value));
  reset.addEventListener("click", () => moveAll(start));
  draw();
  return explorer("Thresholds of the classes", element("div", { class: "filters" }, all.box, reset), table_, summary);
}

// Other words for the classes, which a kernel encodes: in JupyterLab only.
function prompts(data, ask) {
  const { classes, words } = data;
  const status = element("p", { class: "state", role: "alert" });
  const [methods, cosines] = [element("div"), element("div")];
  const picture = element("img", { alt: "" });
  const field = (label, node) => element("label", { class: "field" }, element("span", {}, label), node);
  const names = classes.map((_, k) => {
    const list = element("datalist", { id: uniqueName() }, ...data.offered[k].map((value) => element("option", { value })));
    return { list, input: element("input", { type: "text", list: list.id }) };
  });
  const templates = element("textarea", { rows: 4 });
  const [template, negative] = ["text", "text"].map((type) => element("input", { type }));
  const turn = slider("Patch", 1, { min: 1, max: data.total, step: 1, write: (place, last) => `${place} of ${last}` });
  const reset = button("Reset the words");
  const fields = [...names.map(({ input }) => input), templates, template, negative];

  function fill() {
    names.forEach(({ input }, k) => { input.value = words.names[k]; });
    templates.value = words.templates.join("\n");
    template.value = words.template;
    negative.value = words.negative;
  }
  const answer = latest(() => ask("words", {
    names: names.map(({ input }) => input.value), templates: templates.value.split("\n"), template: template.value,
    negative: negative.value, place: turn.input.value - 1,
  }), (found) => {
    status.textContent = "";
    methods.replaceChildren(table("Strategies", ["Strategy", "mAcc", "change", "mAP", "change"], found.methods),
      element("p", { class: "hint" }, found.note));
    picture.src = found.patch.image;
    picture.alt = `Patch ${found.patch.name}`;
    cosines.replaceChildren(element("p", { class: "panel-title" }, named(found.patch.name)),
      table("Cosines of the patch", ["Class", "Prompted as", "Truth", "Cosine", "Chosen by"], found.cosines));
  }, (message) => {
    status.textContent = message;
    for (const node of [methods, cosines]) node.replaceChildren();
  });
  for (const input of [...fields, turn.input]) input.addEventListener("change", answer);
  reset.addEventListener("click", () => { fill(); answer(); });
  fill();
  answer();
  return explorer("Prompts",
    element("div", { class: "patch" }, element("div", { class: "fields" },
      ...names.map(({ list, input }, k) => field(classNode(k, data), element("span", {}, input, list))),
      field("Templates, one a line; {} takes the name", templates), field("Template of the other strategies", template),
      field("Negative prompt", negative), reset), element("div", {}, status, methods)),
    turn.box, element("div", { class: "patch" }, picture, cosines));
}

// A whole slide with the map of a class over it: moved by drag, wheel, two fingers and keys. Lengths are level-0 pixels,
// `view` maps them to CSS pixels of the canvas. In JupyterLab a kernel reads any tile, a page stores the highest ones.
function slide(data, ask) {
  const { classes, width, height, grid } = data;
  const [xs, ys] = ["xs", "ys"].map((name) => new Int32Array(bytes(data[name]).buffer));
  const [sides, ood] = ["sides", "ood"].map((name) => new Float32Array(bytes(data[name]).buffer));
  const [chances, heat] = [new Uint16Array(bytes(data.chances).buffer), bytes(data.heat)];
  const cells = data.cells && bytes(data.cells);
  const p = (i, k) => chances[i * classes.length + k] / 65535;
  const [UNLIKE, NONE] = [classes.length, classes.length + 1];

  const chooseMap = radios("Map", [...classes.map((_, k) => [classNode(k, data)]), ["unlike the training patches"], ["none"]],
    "choose-map");
  const opacity = slider("Opacity", 60);
  const [outline, fine] = [true, false].map((checked) => element("input", { type: "checkbox", checked }));
  const [zoomIn, zoomOut, fit] = ["Zoom in", "Zoom out", "Whole slide"].map(button);
  const canvas = element("canvas", { class: "slide", role: "application", tabindex: 0,
    "aria-label": "Slide. Arrow keys move it, plus and minus zoom, 0 shows all of it, Enter opens the tile in the middle." });
  const status = element("p", { class: "state", role: "status" });
  const scale = element("span", { class: "heat", "aria-hidden": "true" });
  const legend = element("p", { class: "legend" });
  const list = element("ul", { class: "thumbnails" });
  const listTitle = element("p", { class: "panel-title" });
  const stored = new Map(data.top.flat().map(({ i, image }) => [i, { image, picture: null }]));
  const base = element("img", { alt: "" });
  const view = { zoom: 1, x: 0, y: 0 };
  let [least, outlines, over, picked] = [1, null, null, -1];

  // The colour of a value from 0 to 1: the lowest are nearly clear, so that tissue stays visible.
  const colour = (value) => {
    const at = Math.round(255 * value);
    return `rgb(${heat.slice(3 * at, 3 * at + 3).join(" ")} / ${(0.12 + 0.88 * value).toFixed(2)})`;
  };
  scale.style.backgroundImage = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(colour).join(", ")})`;

  function heatMap() {
    const chosen = chooseMap.value();
    const map = element("canvas", { width: base.naturalWidth, height: base.naturalHeight });
    const context = map.getContext("2d");
    const factor = map.width / width;
    const box = (x, y, side, value) => {
      const [left, top, right, bottom] = [x, y, x + side, y + side].map((edge) => Math.round(edge * factor));
      context.clearRect(left, top, right - left, bottom - top);
      context.fillStyle = colour(value);
      context.fillRect(left, top, right - left, bottom - top);
    };
    if (chosen === NONE) return map;
    const size = cells && fine.checked && chosen < UNLIKE ? grid : 1;
    xs.forEach((x, i) => {
      const value = chosen === UNLIKE ? Math.min(ood[i] / (2 * data.oodThreshold), 1) : p(i, chosen);
      for (let cell = 0; cell < size * size; cell += 1) {
        const part = size > 1 ? cells[(i * classes.length + chosen) * size * size + cell] / 255 : 1;
        const side = sides[i] / size;
        box(x + side * (cell % size), ys[i] + side * Math.floor(cell / size), side, value * part);
      }
    });
    return map;
  }

  // Where a point of the canvas lies on the slide, and the tile that holds it whose centre is nearest.
  const place = (x, y) => [(x - view.x) / view.zoom, (y - view.y) / view.zoom];
  function tileAt(x, y) {
    let [found, nearest] = [-1, Infinity];
    xs.forEach((left, i) => {
      const [dx, dy, half] = [x - left - sides[i] / 2, y - ys[i] - sides[i] / 2, sides[i] / 2];
      const far = Math.max(Math.abs(dx), Math.abs(dy));
      if (far <= half && far < nearest) [found, nearest] = [i, far];
    });
    return found;
  }
  const middle = () => tileAt(...place(canvas.clientWidth / 2, canvas.clientHeight / 2));
  const unlike = (i) => (ood[i] > data.oodThreshold ? ", unlike the training patches" : "");
  function say(i) {
    picked = i;
    status.textContent = i < 0 ? "No tile here: no tissue."
      : `Tile at x ${count(xs[i])}, y ${count(ys[i])}: ${classes.map((name, k) => (
        `${name} ${p(i, k).toFixed(2)}${p(i, k) >= data.thresholds[k] ? " ✓" : ""}`)).join(", ")}; out of distribution ${
        ood[i].toFixed(2)}${unlike(i)}.`;
  }

  function draw() {
    const [w, h, ratio] = [canvas.clientWidth, canvas.clientHeight, window.devicePixelRatio || 1];
    [canvas.width, canvas.height] = [Math.round(w * ratio), Math.round(h * ratio)];
    const context = canvas.getContext("2d");
    context.setTransform(ratio * view.zoom, 0, 0, ratio * view.zoom, ratio * view.x, ratio * view.y);
    context.imageSmoothingQuality = "high";
    context.drawImage(base, 0, 0, width, height);
    for (const [i, { picture }] of stored) if (picture) context.drawImage(picture, xs[i], ys[i], sides[i], sides[i]);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = opacity.input.value / 100;
    if (over) context.drawImage(over, 0, 0, width, height);
    [context.globalAlpha, context.imageSmoothingEnabled] = [1, true];
    if (outlines && outline.checked) {
      context.save();
      context.scale(width / outlines.width, height / outlines.height);
      const line = 1.3 * outlines.width / width / view.zoom;
      outlines.paths.forEach((path, k) => {
        if (k === chooseMap.value() || chooseMap.value() === NONE) drawBorder(context, path, k, data, line);
      });
      context.restore();
    }
    if (picked >= 0) {
      for (const [stroke, line] of [["#fff", 4], ["#000", 1.5]]) {
        [context.strokeStyle, context.lineWidth] = [stroke, line / view.zoom];
        context.strokeRect(xs[picked], ys[picked], sides[picked], sides[picked]);
      }
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const { pixels: bar, text } = scaleBar(data.mpp / view.zoom, w);
    context.fillStyle = "#fffd";
    context.fillRect(10, h - 40, bar + 16, 30);
    context.fillStyle = "#000";
    context.fillRect(18, h - 18, bar, 3);
    context.font = "12px sans-serif";
    context.fillText(text, 18, h - 24);
  }
  function keepInside() {
    for (const [axis, shown, whole] of [["x", canvas.clientWidth, width], ["y", canvas.clientHeight, height]]) {
      const rest = shown - whole * view.zoom;
      view[axis] = rest > 0 ? rest / 2 : Math.min(Math.max(view[axis], rest), 0);
    }
    draw();
  }
  // Zoom so that the point (x, y) of the canvas stays where it is; say whether anything changed.
  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const next = Math.min(Math.max(view.zoom * factor, least), Math.max(4, least));
    if (next === view.zoom) return false;
    const [at, to] = place(x, y);
    Object.assign(view, { zoom: next, x: x - at * next, y: y - to * next });
    keepInside();
    return true;
  }
  function whole() {
    const before = least;
    least = Math.min(canvas.clientWidth / width, canvas.clientHeight / height);
    if (!least) return;
    if (view.zoom === before || view.zoom < least) view.zoom = least;
    keepInside();
  }
  const move = (x, y) => { view.x += x; view.y += y; keepInside(); };

  movable(canvas, {
    zoom, move,
    point: (x, y) => {
      const tile = tileAt(...place(x, y));
      if (tile !== picked) { say(tile); draw(); }
    },
    click: (x, y) => open(tileAt(...place(x, y))),
  });
  canvas.addEventListener("keydown", (event) => {
    const step = 60;
    const keys = {
      ArrowLeft: () => move(step, 0), ArrowRight: () => move(-step, 0), ArrowUp: () => move(0, step),
      ArrowDown: () => move(0, -step), Enter: () => open(middle()),
    };
    for (const [key, factor] of Object.entries(ZOOM_KEYS)) keys[key] = () => zoom(factor);
    if (!keys[event.key] || forBrowser(event)) return;
    event.preventDefault();
    keys[event.key]();
    if (event.key === "Enter") return; // it has told its tile
    say(middle());
    draw();
  });
  for (const [node, factor] of [[zoomIn, 1.5], [zoomOut, 1 / 1.5], [fit, 0]]) node.addEventListener("click", () => zoom(factor));

  const picture = element("img", { alt: "" });
  const id = uniqueName();
  const [title, numbers, close] = [element("p", { id, class: "panel-title" }), element("div"), button("Close")];
  const dialog = element("dialog", { class: "explorer-patch", "aria-labelledby": id }, title,
    element("div", { class: "patch" }, picture, numbers), element("p", { class: "turn-patch" }, close));
  close.addEventListener("click", () => dialog.close());
  const show = latest(async (i) => [i, stored.has(i) ? stored.get(i).image : await ask("tile", i)], ([i, image]) => {
    picture.src = image;
    picture.alt = `Tile at x ${xs[i]}, y ${ys[i]}`;
    title.textContent = `x ${count(xs[i])}, y ${count(ys[i])}, ${count(Math.round(sides[i] * data.mpp))} µm wide${unlike(i)}`;
    numbers.replaceChildren(table("Probabilities of the tile", ["Class", "p", "Threshold", "Decision"], classes.map((_, k) => (
      [classNode(k, data), p(i, k).toFixed(2), data.thresholds[k].toFixed(2), state(p(i, k) >= data.thresholds[k])]))));
    if (!dialog.open) dialog.showModal();
  }, (message) => { status.textContent = message; });
  function open(i) {
    say(i);
    draw();
    if (i < 0) return;
    if (stored.has(i) || (ask && data.any)) show(i);
    else status.append(" It is not stored on this page at full size: the highest tiles of each class are.");
  }

  function follow() {
    const k = chooseMap.value();
    over = heatMap();
    legend.hidden = k === NONE;
    legend.replaceChildren("0 ", scale, k < UNLIKE ? ` 1: probability of ${classes[k]}, present from ${data.thresholds[k].toFixed(2)}`
      : ` ${(2 * data.oodThreshold).toFixed(1)}: out-of-distribution score, unlike the training patches above ${
        data.oodThreshold.toFixed(1)}`);
    listTitle.hidden = k >= UNLIKE;
    listTitle.replaceChildren("Highest probability of ", named(classes[k] ?? ""));
    list.replaceChildren(...(data.top[k] ?? []).map(({ i, image }) => {
      const opener = element("button", { type: "button" }, element("img", { src: image, alt: `Tile at x ${xs[i]}, y ${ys[i]}: ` }),
        element("span", {}, `${p(i, k).toFixed(2)}`));
      opener.addEventListener("click", () => {
        zoom(Math.min(canvas.clientWidth, canvas.clientHeight) / (3 * sides[i] * view.zoom));
        const [x, y] = place(canvas.clientWidth / 2, canvas.clientHeight / 2);
        move((x - xs[i] - sides[i] / 2) * view.zoom, (y - ys[i] - sides[i] / 2) * view.zoom);
        open(i);
      });
      return element("li", {}, opener);
    }));
    draw();
  }
  for (const node of [chooseMap.box, fine]) node.addEventListener("change", follow);
  for (const input of [opacity.input, outline]) input.addEventListener("input", draw);

  async function begin() {
    base.src = data.image;
    await base.decode();
    if (data.mask) {
      const mask = await classMap(data.mask, data);
      outlines = { width: mask.width, height: mask.height, paths: classes.map((_, k) => new Path2D(borderOf(mask, k))) };
    }
    for (const own of stored.values()) loaded(own.image).then((image) => { own.picture = image; draw(); });
    follow();
    new ResizeObserver(whole).observe(canvas);
    canvas.dataset.ready = "";
  }
  begin();
  status.textContent = "Point at a tile to read it; a click opens it.";
  return explorer("Slide with maps",
    element("div", { class: "filters" }, chooseMap.box),
    element("div", { class: "filters" }, opacity.box,
      element("label", { hidden: !data.mask }, outline, " Outline of the mask"),
      element("label", { hidden: !cells }, fine, " Attention inside the tiles")),
    canvas, element("div", { class: "filters" }, zoomIn, zoomOut, fit, legend), status, listTitle, list, dialog);
}

const makers = { patches: viewer, thresholds, prompts, slide };

// Return a function that asks the kernel a question and returns its answer.
function asker(model) {
  const waiting = new Map();
  model.on("msg:custom", ({ id, answer, error }) => {
    const { resolve, reject } = waiting.get(id) ?? {};
    waiting.delete(id);
    if (resolve) error === undefined ? resolve(answer) : reject(new Error(error));
  });
  return (question, given = null) => new Promise((resolve, reject) => {
    const id = String(Math.random()); // several views of one model hear all answers
    waiting.set(id, { resolve, reject });
    model.send({ id, question, given });
  });
}

async function render({ model, el }) {
  const ask = asker(model);
  const data = await ask("data");
  if (data.kind === "patches") data.patches.push(...await ask("rest"));
  el.classList.add("explorer-lab");
  el.append(makers[data.kind](data, ask));
}

for (const figure of document.querySelectorAll("figure.explorer > .explorer-data")) {
  const data = JSON.parse(figure.textContent);
  figure.parentElement.prepend(makers[data.kind](data));
  figure.parentElement.classList.add("live");
}

export default { render };
