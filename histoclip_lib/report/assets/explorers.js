// Explorers, for pages and for JupyterLab: one ES module. On a page each takes the place of its figure and reads the
// JSON beside it; in JupyterLab anywidget calls `render`, and a kernel answers questions. Every text is set as text.

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
const button = (text) => element("button", { type: "button" }, text);
const picker = (...options) => element("select", {}, ...options.map(([value, text]) => element("option", { value }, text)));
const explorer = (label, ...children) => (
  element("div", { class: "explorer-live", role: "group", "aria-label": label }, ...children));

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

function slider(label, value, { min = 0, max = 100, step = 5, write = (number) => `${number} %` } = {}) {
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

// The border of a class in a mask, along the edges of its pixels, at twice their size.
function borderOf(mask, k) {
  const path = new Path2D();
  const inside = (x, y) => mask.of[y * mask.width + x] === k + 1;
  for (let y = 0; y < mask.height; y += 1) {
    for (let x = 0; x < mask.width; x += 1) {
      if (x && inside(x, y) !== inside(x - 1, y)) {
        path.moveTo(x * 2, y * 2);
        path.lineTo(x * 2, (y + 1) * 2);
      }
      if (y && inside(x, y) !== inside(x, y - 1)) {
        path.moveTo(x * 2, y * 2);
        path.lineTo((x + 1) * 2, y * 2);
      }
    }
  }
  return path;
}
function drawBorder(context, path, k, data, width = 2.5) {
  context.globalAlpha = 1;
  for (const [colour, wide] of [["#fff", 2 * width], [data.colours[k], width]]) {
    context.strokeStyle = colour;
    context.lineWidth = wide;
    context.setLineDash(colour !== "#fff" && striped(k, data) ? [3.2 * width, 2 * width] : []);
    context.stroke(path);
  }
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

function radios(legend, options, className) {
  const name = uniqueName();
  const list = element("div");
  const add = (content) => {
    const input = element("input", { type: "radio", name, value: list.childElementCount });
    list.append(element("label", {}, input, ...content));
    return input;
  };
  for (const content of options) add(content);
  const value = () => Number(list.querySelector(":checked").value);
  list.querySelector("input").checked = true;
  return { add, value, box: element("fieldset", { class: className }, element("legend", {}, legend), list) };
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

// Attention: a patch, its mask, and the map of any class over it. In JupyterLab any patch can be added to those shown.
function attention(data, ask) {
  const { classes, patches } = data;
  const heat = bytes(data.heat);
  const hasMasks = patches.some((patch) => patch.mask);
  const wrongIn = (patch) => patch.labels.filter((label, k) => isWrong(outcome(label, patch.probabilities[k], data))).length;
  function thumbnail(patch) {
    const wrong = wrongIn(patch);
    const remark = wrong ? `, ${wrong} wrong ${wrong === 1 ? "decision" : "decisions"}` : "";
    return [element("img", { src: patch.image, alt: patch.name + remark, title: patch.name }),
      ...(wrong ? [element("span", { class: "badge", "aria-hidden": "true" }, "✗")] : [])];
  }
  const choosePatch = radios("Choose a patch", patches.map(thumbnail), "choose-patch");
  const lines = classes.map((name, k) => ({
    truth: element("span", { class: "truth" }), fill: element("span"), p: element("span", { class: "p" }),
    kind: element("span", { class: "kind" }), name: named(name, { class: "name" }), swatch: swatch(k, data),
  }));
  const chooseClass = radios("Class, truth, and probability with the threshold at 0.5", lines.map((line) => [
    line.swatch, line.name, line.truth, element("span", { class: "bar", "aria-hidden": "true" }, line.fill), line.p,
    line.kind,
  ]), "choose-class");

  const picture = element("img", { alt: "" });
  const overlay = element("canvas", { role: "img", "aria-label": "Attention" });
  const maskCanvas = element("canvas", { role: "img", "aria-label": "Mask" });
  const [about, legend] = [element("p"), element("p", { class: "legend" })];
  const [overlayTitle, peak, scale] = [element("span"), element("span"), element("span", { class: "heat", "aria-hidden": "true" })];
  scale.style.backgroundImage = `linear-gradient(to right, ${[0, 32, 64, 96, 128, 160, 192, 224, 255].map((value) => (
    `rgb(${heat.slice(3 * value, 3 * value + 3).join(" ")} / ${value / 255})`)).join(", ")})`;
  const maskPanel = panel("Mask", maskCanvas, legend);
  const panels = element("div", { class: "panels" }, panel("Patch", picture, about), maskPanel,
    panel(overlayTitle, overlay, element("p", { class: "legend" }, "lowest ", scale, " ", peak)));
  const opacity = slider("Opacity", 85);
  const outline = element("input", { type: "checkbox", checked: true });
  const controls = element("div", { class: "overlay-options" }, opacity.box);
  if (hasMasks) controls.append(element("label", {}, outline, " Outline of the class in the mask"));
  const status = element("p", { class: "state", role: "status" });

  // What has been decoded of a patch, once.
  const decoded = new Map();
  async function decode(patch) {
    const tissue = canvasOf(pixelsOf(await loaded(patch.image)));
    return { tissue, mask: patch.mask && await classMap(patch.mask, data), heats: new Map() };
  }
  function load(i, k) {
    if (!decoded.has(i)) decoded.set(i, decode(patches[i]));
    return decoded.get(i).then((parts) => ({ i, k, ...parts }));
  }

  function inWords(map) {
    const there = map.where ? `most attention ${map.where}` : "attention is uniform: there is no evidence for the class";
    if (map.area === null) return there;
    return `${there}; ${percent(map.inside)} of it in the mask, which covers ${percent(map.area)} of the patch`;
  }
  function describe() {
    const [i, k] = [choosePatch.value(), chooseClass.value()];
    const patch = patches[i];
    lines.forEach((line, c) => {
      const kind = outcome(patch.labels[c], patch.probabilities[c], data);
      line.truth.textContent = state(patch.labels[c]);
      line.fill.style.width = `${100 * patch.probabilities[c]}%`;
      line.fill.style.setProperty("--class-colour", data.colours[c]);
      line.p.textContent = patch.probabilities[c].toFixed(2);
      line.kind.textContent = mark(kind);
      line.kind.classList.toggle("wrong", isWrong(kind));
    });
    const [p, map] = [patch.probabilities[k], patch.maps[k]];
    picture.src = patch.image;
    picture.alt = `Patch ${patch.name}`;
    about.replaceChildren(...aboutPatch(patch));
    overlayTitle.replaceChildren("Attention of ", named(classes[k]));
    peak.textContent = map.where ? `peak: ${map.peak.toLocaleString("en")} × uniform` : "uniform";
    status.replaceChildren(`Patch ${i + 1} of ${patches.length}. `, named(classes[k]),
      `: ${state(patch.labels[k])}, p = ${p.toFixed(2)}, ${mark(outcome(patch.labels[k], p, data))}; ${inWords(map)}`,
      ...(patch.mask && map.area === null ? ["; the class is not in the mask"] : []), ".");
  }
  function paint({ i, k, tissue, mask, heats }) {
    const [patch, scaled] = [patches[i], 2 * tissue.width];
    if (!heats.has(k)) heats.set(k, heatOf(bytes(patch.maps[k].cells), data.grid, tissue.width, heat));
    [overlay.width, overlay.height] = [scaled, scaled];
    const context = overlay.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(tissue, 0, 0, scaled, scaled);
    context.globalAlpha = opacity.input.value / 100;
    context.drawImage(heats.get(k), 0, 0, scaled, scaled);
    const drawn = mask && outline.checked && patch.maps[k].area !== null;
    if (drawn) drawBorder(context, borderOf(mask, k), k, data);
    overlay.setAttribute("aria-label", `Attention of ${classes[k]} over patch ${patch.name}: ${inWords(patch.maps[k])}${
      drawn ? "; with the outline of the mask" : ""}.`);
    maskPanel.hidden = !mask;
    if (!mask) return;
    drawMask(maskCanvas, mask, data);
    const found = classes.flatMap((_, c) => (patch.maps[c].area === null ? [] : [c]));
    legend.replaceChildren(...found.map((c) => element("span", { class: "key" }, swatch(c, data), named(classes[c]), " ",
      element("span", {}, percent(patch.maps[c].area)))), ...(found.length ? [] : ["none of the classes"]));
    maskCanvas.setAttribute("aria-label", `Mask of patch ${patch.name}: ${
      found.map((c) => `${classes[c]} ${percent(patch.maps[c].area)}`).join(", ") || "none of the classes"}.`);
  }
  const drawLatest = latest(load, paint, (message) => { status.textContent = message; });
  const draw = () => drawLatest(choosePatch.value(), chooseClass.value());
  const follow = () => { describe(); draw(); };
  for (const { box } of [choosePatch, chooseClass]) box.addEventListener("change", follow);
  for (const input of [opacity.input, outline]) input.addEventListener("input", draw);

  const more = element("label", { hidden: !ask }, `Add the patch at place (1 to ${count(data.total)}) `);
  if (ask) {
    const place = element("input", { type: "number", min: 1, max: data.total, step: 1 });
    more.append(place);
    place.addEventListener("change", latest(() => ask("patch", Number(place.value)), (patch) => {
      patches.push(patch);
      choosePatch.add(thumbnail(patch)).checked = true;
      follow();
    }, (message) => { status.textContent = message; }));
  }
  follow();
  return explorer("Attention over patches", choosePatch.box, more, panels, status,
    element("div", { class: "choices" }, chooseClass.box, controls));
}

// Patches with their labels and masks. A page holds some of them; in JupyterLab a kernel finds any.
function browser(data, ask) {
  const { classes, patches } = data;
  const chooseClass = picker([-1, "any class"], ...classes.map((name, k) => [k, name]));
  const chooseState = picker([1, "present"], [0, "absent"]);
  const chooseGroup = picker([-1, "any group"], ...data.groups.map((name, i) => [i, name]));
  const write = (place, last) => `${count(Number(place))} of ${count(Number(last))}`;
  const turn = slider("Patch", 1, { min: 1, max: patches.length, step: 1, write });
  const outline = element("input", { type: "checkbox", checked: true });
  const canvas = element("canvas", { role: "img", "aria-label": "Patch" });
  const [about, status, labels] = [element("p"), element("p", { class: "state", role: "status" }), element("div")];
  let fitting = [];

  function fits(patch) {
    const [k, wanted, group] = [chooseClass, chooseState, chooseGroup].map(({ value }) => Number(value));
    return (k < 0 || patch.labels[k] === wanted) && (group < 0 || patch.group === data.groups[group]);
  }
  const find = async () => (ask
    ? ask("find", [chooseClass, chooseState, chooseGroup].map(({ value }) => Number(value)))
    : patches.flatMap((patch, i) => (fits(patch) ? [i] : [])));
  async function load(place) {
    if (!fitting.length) return null;
    const patch = ask ? await ask("patch", fitting[place]) : patches[fitting[place]];
    return { patch, image: await loaded(patch.image), mask: patch.mask && await classMap(patch.mask, data) };
  }
  function paint(found) {
    for (const node of [canvas, about, labels]) node.hidden = !found;
    const among = ask ? `${count(data.total)} patches` : `${count(patches.length)} patches on this page, of ${count(data.total)},`;
    status.textContent = found ? `${count(fitting.length)} of the ${among} fit.` : "No patch fits.";
    if (!found) return;
    const { patch, image, mask } = found;
    [canvas.width, canvas.height] = [2 * image.naturalWidth, 2 * image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (mask && outline.checked) classes.forEach((_, k) => { if (patch.areas[k]) drawBorder(context, borderOf(mask, k), k, data); });
    const present = classes.filter((_, k) => patch.labels[k]).join(", ") || "no label";
    canvas.setAttribute("aria-label", `Patch ${patch.name}: ${present}.`);
    about.replaceChildren(...aboutPatch(patch));
    labels.replaceChildren(table("Labels of the patch", ["Class", "Label", ...(mask ? ["Area in the mask"] : [])],
      classes.map((_, k) => [classNode(k, data), state(patch.labels[k]), ...(mask ? [percent(patch.areas[k])] : [])])));
  }
  function fail(message) {
    for (const node of [canvas, about, labels]) node.hidden = true;
    status.textContent = message;
  }
  const drawLatest = latest(load, paint, fail);
  const draw = () => drawLatest(turn.input.value - 1);
  const filter = latest(find, (found) => {
    fitting = found;
    chooseState.disabled = chooseClass.value < 0;
    turn.input.disabled = fitting.length < 2;
    turn.input.max = Math.max(1, fitting.length);
    turn.set(1);
    draw();
  }, fail);
  for (const input of [chooseClass, chooseState, chooseGroup]) input.addEventListener("change", filter);
  for (const input of [turn.input, outline]) input.addEventListener("input", draw);
  filter();
  return explorer("Patches with their labels",
    element("div", { class: "filters" }, element("label", {}, "Class ", chooseClass),
      element("label", {}, "which is ", chooseState), element("label", { hidden: !data.groups.length }, "Group ", chooseGroup)),
    element("div", { class: "filters" }, turn.box,
      element("label", { hidden: !data.masks }, outline, " Outlines of the classes in the mask")),
    status, element("div", { class: "patch" }, element("div", { class: "panel" }, canvas, about), labels));
}

const STEP = 40; // thumbnails that appear at once

// A gallery of patches, filtered by class, by kind of decision and by confidence.
function gallery(data) {
  const { classes, patches } = data;
  const kinds = ["false negative", "false positive", CORRECT];
  const id = uniqueName();
  const chooseClass = picker([-1, "all classes"], ...classes.map((name, k) => [k, name]));
  const boxes = kinds.map((kind) => element("input", { type: "checkbox", checked: kind !== CORRECT }));
  const [from, to] = [slider("Confidence from", 0), slider("Confidence to", 100)];
  const status = element("p", { class: "state", role: "status" });
  const list = element("ul", { class: "thumbnails" });
  const more = button("");
  let [fitting, shown] = [[], 0];

  // Decisions of a patch that fit, the most confident first. A patch counts as correct where every class looked at is.
  function fits(patch) {
    const k = Number(chooseClass.value);
    const decisions = classes.map((_, c) => c).filter((c) => (k < 0 || c === k) && patch.labels[c] !== null).map((c) => {
      const p = patch.probabilities[c];
      return { k: c, p, kind: outcome(patch.labels[c], p, data), confidence: confidence(p) };
    });
    const allRight = decisions.every(({ kind }) => kind === CORRECT);
    return decisions
      .filter(({ kind }) => boxes[kinds.indexOf(kind)].checked && (kind !== CORRECT || allRight))
      .sort((one, other) => other.confidence - one.confidence);
  }

  const picture = element("img", { alt: "" });
  const title = element("p", { id: `${id}-title`, class: "panel-title" });
  const decisions = element("div");
  const [previous, next, close] = ["Previous", "Next", "Close"].map(button);
  const dialog = element("dialog", { class: "explorer-patch", "aria-labelledby": `${id}-title` }, title,
    element("div", { class: "patch" }, picture, decisions), element("p", { class: "turn-patch" }, previous, next, close));
  let at = 0;
  function open(place) {
    at = place;
    const { patch } = fitting[at];
    picture.src = patch.image;
    picture.alt = `Patch ${patch.name}`;
    title.replaceChildren(...aboutPatch(patch), ` (${at + 1} of ${fitting.length})`);
    decisions.replaceChildren(table("Decisions", ["Class", "Truth", "p", "Decision"], classes.map((name, k) => {
      const kind = outcome(patch.labels[k], patch.probabilities[k], data);
      const decision = element("span", { class: isWrong(kind) ? "wrong" : null }, mark(kind));
      return [named(name), state(patch.labels[k]), patch.probabilities[k].toFixed(2), decision];
    })));
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

  function thumbnail({ patch, decisions: [{ k, p, kind }] }, place) {
    const opener = element("button", { type: "button", title: patch.name },
      element("img", { src: patch.image, alt: `${patch.name}: ` }),
      element("span", {}, named(classes[k]), element("br"), `${kind}, ${p.toFixed(2)}`));
    opener.addEventListener("click", () => open(place));
    return element("li", {}, opener);
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
      .filter(({ decisions: [first] }) => first && first.confidence >= low && first.confidence <= high)
      .sort((one, other) => other.decisions[0].confidence - one.decisions[0].confidence);
    shown = 0;
    list.replaceChildren();
    show();
    status.textContent = fitting.length
      ? `${count(fitting.length)} of ${count(patches.length)} patches fit.`
      : `No patch fits, of ${count(patches.length)}. Allow more kinds of decisions or a wider range of confidence.`;
  }
  // The two ends push each other.
  from.input.addEventListener("input", () => to.set(Math.max(to.input.value, from.input.value)));
  to.input.addEventListener("input", () => from.set(Math.min(to.input.value, from.input.value)));
  for (const input of [chooseClass, ...boxes, from.input, to.input]) input.addEventListener("input", filter);
  more.addEventListener("click", () => {
    const first = shown;
    show();
    list.children[first].querySelector("button").focus();
  });
  filter();
  return explorer("Gallery of patches",
    element("div", { class: "filters" }, element("label", {}, "Class ", chooseClass),
      element("fieldset", { class: "kinds" }, element("legend", {}, "Decisions"),
        ...kinds.map((kind, i) => element("label", {}, boxes[i], ` ${kind}`))),
      element("div", { class: "range" }, from.box, to.box)),
    element("p", { class: "hint" }, `${data.held} The number is the probability p; confidence is 0 % at p = 0.5 and `
      + "100 % at p = 0 and p = 1."),
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
        return [name, fixed(now), fixed(before), `${change < 0 ? "−" : "+"}${fixed(Math.abs(change))}`];
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
    const wanted = 0.25 * w / view.zoom * data.mpp; // of the bar, in micrometres
    const ten = 10 ** Math.floor(Math.log10(wanted));
    const length = [5, 2, 1].find((step) => step * ten <= wanted) * ten;
    const bar = length / data.mpp * view.zoom;
    context.fillStyle = "#fffd";
    context.fillRect(10, h - 40, bar + 16, 30);
    context.fillStyle = "#000";
    context.fillRect(18, h - 18, bar, 3);
    context.font = "12px sans-serif";
    context.fillText(length >= 1000 ? `${length / 1000} mm` : `${length} µm`, 18, h - 24);
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

  const pointers = new Map();
  let dragged = 0;
  const at = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  const spread = () => {
    const [[x, y], [u, v]] = [...pointers.values()];
    return { far: Math.hypot(x - u, y - v), x: (x + u) / 2, y: (y + v) / 2 };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    dragged = pointers.size > 1 ? Infinity : 0;
  });
  canvas.addEventListener("pointermove", (event) => {
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
    const tile = tileAt(...place(x, y));
    if (tile !== picked) { say(tile); draw(); }
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, (event) => {
      if (pointers.delete(event.pointerId) && kind === "pointerup" && dragged < 4) open(tileAt(...place(...at(event))));
    });
  }
  canvas.addEventListener("wheel", (event) => {
    if (zoom(2 ** (-event.deltaY / 300), ...at(event))) event.preventDefault(); // at its ends the page scrolls
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 60;
    const keys = {
      ArrowLeft: () => move(step, 0), ArrowRight: () => move(-step, 0), ArrowUp: () => move(0, step),
      ArrowDown: () => move(0, -step), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5),
      0: () => zoom(0), Enter: () => open(middle()),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    say(middle());
    keys[event.key]();
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
      outlines = { width: 2 * mask.width, height: 2 * mask.height, paths: classes.map((_, k) => borderOf(mask, k)) };
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

const makers = { attention, patches: browser, gallery, thresholds, prompts, slide };

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
  el.classList.add("explorer-lab");
  el.append(makers[data.kind](data, ask));
}

for (const figure of document.querySelectorAll("figure.explorer > .explorer-data")) {
  const data = JSON.parse(figure.textContent);
  figure.parentElement.prepend(makers[data.kind](data));
  figure.parentElement.classList.add("live");
}

export default { render };
