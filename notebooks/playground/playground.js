// The page: it draws what operators.js computes.

const STRIDE = 8;
const BINS = 3;
// What the page shows: the arguments of the operator, the chosen bin, whether the photograph is
// there. The address carries the same fields under the same names.
const DEFAULTS = {
  box: [77, 45, 122, 91],
  op: "roi_align",
  aggregate: "mean",
  samplingRatio: 2,
  aligned: true,
  bin: [1, 1],
  photograph: false,
};
// How far a box may leave the map, and how small it may become, in image pixels.
const [LOW, HIGH, SMALLEST] = [-12, 140, 4];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PAIRS = range(BINS).flatMap((p) => range(BINS).map((q) => [p, q]));
let state = { ...DEFAULTS };

const byId = (id) => document.getElementById(id);
const amount = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// The operator `op` on the feature map, with the arguments that the page shows.
function pool(op, box) {
  return OPERATORS[op](FEATURES, box, {
    outputSize: BINS,
    spatialScale: 1 / STRIDE,
    samplingRatio: state.samplingRatio,
    aligned: state.aligned,
    aggregate: state.aggregate,
  });
}

// Every input ends here: it changes fields of `state`.
function change(fields) {
  state = { ...state, ...fields };
  redraw();
}

// Draws everything anew from `state`.
function redraw() {
  const pooled = pool(state.op, state.box);
  drawControls();
  drawMap(pooled);
  drawOutput(pooled);
  drawCurve();
  summarise(pooled);
  byId("python").textContent = python();
  writeAddress();
}

// The map, in feature pixels. Pixel i spans [i, i + 1), so a sample at position i, the centre of
// that pixel, is drawn at i + 0.5.

// Appends an element to an SVG parent.
function element(parent, name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

const edges = ([x1, y1, x2, y2]) => ({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 });

const map = byId("map");
const eachCell = (visit) => FEATURES.forEach((row, i) => row.forEach((_, j) => visit(i, j)));
const grey = (value) => `rgb(${value},${value},${value})`;
eachCell((i, j) => {
  // A little wider than a cell: no seam shows.
  const cell = edges([j, i, j + 1.02, i + 1.02]);
  element(map, "rect", { ...cell, fill: grey(FEATURES[i][j]) });
});
const photograph = element(map, "image", { href: PHOTOGRAPH, width: 16, height: 16 });
for (const at of [0, 4, 8, 12, 16]) {
  element(map, "text", { class: "tick", x: at, y: -0.3 }, at);
  element(map, "text", { class: "tick", x: -0.55, y: at + 0.18 }, at);
}
const overlay = element(map, "g", { "pointer-events": "none" });
const boxHandle = element(map, "rect", {
  class: "box",
  tabindex: 0,
  role: "application",
  "aria-roledescription": "movable box",
  "aria-label": "The box",
  "aria-describedby": "help summary",
});
// Mostly outside the box, so that a small box can still be taken by its middle.
const grip = element(map, "circle", { class: "grip", r: 0.9 });

function drawMap(pooled) {
  overlay.replaceChildren();
  photograph.setAttribute("visibility", state.photograph ? "visible" : "hidden");
  drawWeights(pooled);
  const asked = edges(state.box.map((value) => value / STRIDE));
  element(overlay, "rect", { class: "casing", ...asked });
  drawUsed(pooled);
  element(overlay, "rect", { class: "asked", ...asked });
  if (pooled.ys) drawSamples(pooled);
  drawNumbers(pooled);
  const [, , cx, cy] = state.box.map((value) => value / STRIDE);
  element(overlay, "circle", { class: "corner", cx, cy, r: 0.26 });
  for (const key in asked) boxHandle.setAttribute(key, asked[key]);
  grip.setAttribute("cx", cx + 0.55);
  grip.setAttribute("cy", cy + 0.55);
}

// The cells that the chosen bin reads, and as shade the weights of those that decide.
function drawWeights(pooled) {
  const weights = pooled.weights(...state.bin);
  const reads = pooled.reads(...state.bin);
  const top = Math.max(...weights.flat());
  eachCell((i, j) => {
    const cell = edges([j, i, j + 1, i + 1]);
    const opacity = 0.35 + (0.55 * weights[i][j]) / top;
    if (weights[i][j] > 0) element(overlay, "rect", { class: "weight", ...cell, opacity });
    if (reads[i][j]) element(overlay, "rect", { class: "read", ...cell });
  });
}

// The weights as numbers, above everything else: ".25" for 0.25.
function drawNumbers(pooled) {
  const weights = pooled.weights(...state.bin);
  eachCell((i, j) => {
    if (weights[i][j] < 0.005) return;
    const text = weights[i][j].toFixed(2).replace(/^0|\.00$/, "");
    element(overlay, "text", { class: "number", x: j + 0.5, y: i + 0.69 }, text);
  });
}

// The box that the operator works on, and its bins: equal parts, or RoIPool's rounded ones.
function drawUsed(pooled) {
  const [x1, y1, x2, y2] = pooled.used;
  element(overlay, "rect", { class: "casing", ...edges(pooled.used) });
  if (pooled.rows) {
    for (const [top, bottom] of pooled.rows) {
      for (const [left, right] of pooled.columns) {
        const inset = [left + 0.08, top + 0.08, right - 0.08, bottom - 0.08];
        if (left < right && top < bottom) {
          element(overlay, "rect", { class: "bins", ...edges(inset) });
        }
      }
    }
  } else {
    for (let k = 1; k < BINS; k++) {
      const [x, y] = [x1 + ((x2 - x1) * k) / BINS, y1 + ((y2 - y1) * k) / BINS];
      element(overlay, "path", { class: "bins", d: `M${x} ${y1}V${y2}M${x1} ${y}H${x2}` });
    }
  }
  element(overlay, "rect", { class: "used", ...edges(pooled.used) });
}

// The samples; those of the chosen bin are larger.
function drawSamples({ ys, xs }) {
  const isChosen = (p, q) => p === state.bin[0] && q === state.bin[1];
  for (const [p, q] of PAIRS) {
    for (const y of ys[p]) {
      for (const x of xs[q]) {
        const inside = isInside(y, FEATURES.length) && isInside(x, FEATURES[0].length);
        const name = `sample${inside ? "" : " outside"}${isChosen(p, q) ? "" : " other"}`;
        const r = isChosen(p, q) ? 0.17 : 0.1;
        element(overlay, "circle", { class: name, cx: x + 0.5, cy: y + 0.5, r });
      }
    }
  }
}

// The table of the outputs. Its buttons are made once, so that they keep the focus.

const buttons = range(BINS).map((p) => {
  const row = byId("output").tBodies[0].insertRow();
  return range(BINS).map((q) => {
    const button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", () => change({ bin: [p, q] }));
    button.addEventListener("keydown", (event) => {
      const [dx, dy] = ARROWS[event.key] ?? [0, 0];
      const next = [clip(p + dy, 0, BINS - 1), clip(q + dx, 0, BINS - 1)];
      if (dx || dy) {
        event.preventDefault();
        change({ bin: next });
        buttons[next[0]][next[1]].focus();
      }
    });
    row.insertCell().append(button);
    return button;
  });
});

function drawOutput(pooled) {
  pooled.out.forEach((row, p) =>
    row.forEach((value, q) => {
      const button = buttons[p][q];
      button.textContent = value.toFixed(1);
      button.value = value;
      button.style.background = grey(value);
      button.style.color = value > 127 ? "#000" : "#fff";
      button.setAttribute("aria-label", `Bin [${p}, ${q}]: ${value.toFixed(1)}`);
      button.setAttribute("aria-pressed", p === state.bin[0] && q === state.bin[1]);
    }),
  );
}

// Text for everybody, read aloud by screen readers whenever it changes.
function summarise(pooled) {
  const at = state.box.map((value) => (value / STRIDE).toFixed(3));
  const [p, q] = state.bin;
  const sum = pooled
    .weights(p, q)
    .flat()
    .reduce((total, weight) => total + weight, 0);
  const read = pooled.reads(p, q).flat().filter(Boolean).length;
  const lines = [
    `Box: x from ${at[0]} to ${at[2]}, y from ${at[1]} to ${at[3]} feature pixels.`,
    `Bin [${p}, ${q}] is ${pooled.out[p][q].toFixed(1)}. ${origin(pooled, read)}`,
    `The weights add to ${sum.toFixed(6)}. Read backwards, they are the gradient of the bin.`,
  ];
  lines.forEach((line, index) => {
    const paragraph = byId("summary").children[index];
    if (paragraph.textContent !== line) paragraph.textContent = line;
  });
}

// Where the output of the chosen bin comes from, in words; `read` is the number of cells it reads.
function origin(pooled, read) {
  const [p, q] = state.bin;
  if (!pooled.ys) {
    return read ? `It is the largest of ${amount(read, "cell")}.` : "No cell lies in it.";
  }
  const [ys, xs] = [pooled.ys[p], pooled.xs[q]];
  const inside =
    ys.filter((y) => isInside(y, FEATURES.length)).length *
    xs.filter((x) => isInside(x, FEATURES[0].length)).length;
  const outside = ys.length * xs.length - inside;
  const how = state.aggregate === "max" ? "largest" : "mean";
  const grid = `${ys.length} × ${xs.length} samples`;
  let text = `It is the ${how} of ${grid}, which read ${amount(read, "cell")}.`;
  if (outside) text += ` Over a pixel outside the map, so counted as 0: ${outside}.`;
  return text;
}

// The curve: how the chosen bin's output changes while the box moves two cells to the right.

const STEPS = 128;
const PLOT = { left: 52, right: 470, top: 32, bottom: 158 };
const NAMES = { roi_pool: "RoIPool", roi_warp: "RoIWarp", roi_align: "RoIAlign" };

// All three operators, drawn from 0 where the left edge of the box lies on an even cell.
function drawCurve() {
  const svg = byId("curve");
  svg.replaceChildren();
  const [x1, y1, x2, y2] = state.box;
  const [p, q] = state.bin;
  // The two cells in which the left edge of the box lies now.
  const from = 2 * Math.floor(x1 / STRIDE / 2);
  const output = (op, x) => pool(op, [x * STRIDE, y1, x * STRIDE + x2 - x1, y2]).out[p][q];
  const places = range(STEPS + 1).map((k) => from + (2 * k) / STEPS);
  const start = {};
  const curves = {};
  for (const op in OPERATORS) {
    start[op] = output(op, from);
    curves[op] = places.map((x) => output(op, x) - start[op]);
  }
  const values = Object.values(curves).flat();
  const [low, high] = [Math.min(...values, -1), Math.max(...values, 1)];
  const { left, right, top, bottom } = PLOT;
  const across = (x) => left + ((x - from) / 2) * (right - left);
  const up = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);

  drawAxes(svg, { from, low, high, across, up });
  const here = x1 / STRIDE;
  element(svg, "path", { class: "here", d: `M${across(here)} ${top}V${bottom}` });
  Object.keys(OPERATORS).forEach((op, index) => {
    const points = curves[op].map((value, k) => `${across(places[k])},${up(value)}`).join(" ");
    const name = `operator ${op}${op === state.op ? " current" : ""}`;
    element(svg, "polyline", { class: name, points });
    const x = left + 30 + index * 145;
    element(svg, "path", { class: name, d: `M${x - 30} 15H${x}` });
    element(svg, "text", { class: `name ${op}`, x: x + 8, y: 19 }, NAMES[op]);
  });
  const dot = { cx: across(here), cy: up(output(state.op, here) - start[state.op]), r: 5 };
  element(svg, "circle", { class: "here-dot", ...dot });
  byId("curve-title").textContent =
    `Change of bin [${p}, ${q}] while the box moves two cells to the right; the dot is the box now`;
}

// The frame of the curve, its ticks and their units.
function drawAxes(svg, { from, low, high, across, up }) {
  const { left, right, top, bottom } = PLOT;
  element(svg, "rect", { class: "frame", ...edges([left, top, right, bottom]) });
  for (let x = from; x <= from + 2; x += 0.5) {
    element(svg, "path", { class: "frame", d: `M${across(x)} ${bottom}v5` });
    element(svg, "text", { x: across(x), y: bottom + 18, "text-anchor": "middle" }, x);
  }
  const step = [1, 2, 5, 10, 20, 50, 100, 200].find((size) => (high - low) / size <= 5);
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) {
    element(svg, "path", { class: "frame", d: `M${left} ${up(value)}H${right}` });
    const text = value > 0 ? `+${value}` : value;
    element(svg, "text", { x: left - 6, y: up(value) + 4, "text-anchor": "end" }, text);
  }
  const middle = (left + right) / 2;
  const label = "left edge of the box, feature pixels";
  element(svg, "text", { x: middle, y: bottom + 37, "text-anchor": "middle" }, label);
  const turn = `translate(13 ${(top + bottom) / 2}) rotate(-90)`;
  element(svg, "text", { transform: turn, "text-anchor": "middle" }, "brightness");
}

// The call that gives the same output in Python.
function python() {
  const { op, aggregate, samplingRatio, aligned } = state;
  const number = (value) => (Number.isInteger(value) ? value.toFixed(1) : String(value));
  const keywords = [`output_size=${BINS}`, `spatial_scale=1 / ${STRIDE}`];
  if (op !== "roi_pool") keywords.push(`sampling_ratio=${samplingRatio}`);
  if (op === "roi_align") keywords.push(`aligned=${aligned ? "True" : "False"}`);
  if (op !== "roi_pool") keywords.push(`aggregate="${aggregate}"`);
  return `# Run this in the root of the repository.
import numpy as np
from PIL import Image

from reference.${op} import ${op}

image = np.asarray(Image.open("notebooks/data/nuclei.png"))
# The brightness, averaged over 8 x 8 pixels: [N, C, H, W].
features = image.mean(axis=2).reshape(1, 1, 16, 8, 16, 8).mean(axis=(3, 5))
rois = np.array([[${state.box.map(number).join(", ")}]])  # xyxy, image pixels
image_index = np.array([0])
out = ${op}(
    features,
    rois,
    image_index,
${keywords.map((keyword) => `    ${keyword},`).join("\n")}
)
print(out[0, 0].round(1))
`;
}

byId("copy").addEventListener("click", async () => {
  const code = byId("python");
  try {
    await navigator.clipboard.writeText(code.textContent);
    byId("copied").textContent = "Copied.";
  } catch {
    // The browser does not let the page write to the clipboard.
    getSelection().selectAllChildren(code);
    byId("copied").textContent = "The code is selected: copy it with Ctrl+C.";
  }
});

// The controls.

const radios = [...document.getElementsByName("operator")];

function drawControls() {
  for (const radio of radios) radio.checked = radio.value === state.op;
  byId("samplingRatio").value = state.samplingRatio;
  byId("aggregate").value = state.aggregate;
  byId("aligned").checked = state.aligned;
  byId("photograph").checked = state.photograph;
  byId("samplingRatio").disabled = byId("aggregate").disabled = state.op === "roi_pool";
  byId("aligned").disabled = state.op !== "roi_align";
}

for (const radio of radios) {
  radio.addEventListener("change", () => change({ op: radio.value }));
}
byId("samplingRatio").addEventListener("change", (event) =>
  change({ samplingRatio: Number(event.target.value) }),
);
byId("aggregate").addEventListener("change", (event) => change({ aggregate: event.target.value }));
for (const id of ["aligned", "photograph"]) {
  byId(id).addEventListener("change", (event) => change({ [id]: event.target.checked }));
}

// Moving.

// The box, or its corner alone, moved by image pixels, in steps of at least an eighth of a pixel.
function moved([x1, y1, x2, y2], dx, dy, cornerAlone) {
  const snap = (value) => Math.round(value * 8) / 8;
  if (cornerAlone) {
    return [
      x1,
      y1,
      clip(snap(x2 + dx), x1 + SMALLEST, HIGH),
      clip(snap(y2 + dy), y1 + SMALLEST, HIGH),
    ];
  }
  const [sx, sy] = [clip(snap(dx), LOW - x1, HIGH - x2), clip(snap(dy), LOW - y1, HIGH - y2)];
  return [x1 + sx, y1 + sy, x2 + sx, y2 + sy];
}

// Chooses the bin of the box in which the pointer is.
function chooseBinAt(event) {
  const frame = boxHandle.getBoundingClientRect();
  const part = (value, low, size) => clip(Math.floor((BINS * (value - low)) / size), 0, BINS - 1);
  change({
    bin: [
      part(event.clientY, frame.top, frame.height),
      part(event.clientX, frame.left, frame.width),
    ],
  });
}

// Dragging a handle moves the box; a press that does not move chooses the bin below it.
function makeDraggable(handle, cornerAlone) {
  // A finger on the handle must not scroll the page; touch-action has no effect inside an SVG.
  handle.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  handle.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    const scale = (map.viewBox.baseVal.width * STRIDE) / map.getBoundingClientRect().width;
    const { box } = state;
    let far = false;
    handle.setPointerCapture(down.pointerId);
    handle.onpointermove = (event) => {
      const [dx, dy] = [event.clientX - down.clientX, event.clientY - down.clientY];
      far ||= Math.hypot(dx, dy) > 3;
      if (far) change({ box: moved(box, dx * scale, dy * scale, cornerAlone) });
    };
    handle.onpointerup = handle.onpointercancel = (event) => {
      handle.onpointermove = null;
      if (!far && event.type === "pointerup") chooseBinAt(event);
    };
  });
}
makeDraggable(boxHandle, false);
makeDraggable(grip, true);

boxHandle.addEventListener("keydown", (event) => {
  const [dx, dy] = ARROWS[event.key] ?? [0, 0];
  if (dx || dy) {
    event.preventDefault();
    const step = event.shiftKey ? STRIDE : STRIDE / 8;
    change({ box: moved(state.box, dx * step, dy * step, event.altKey) });
  }
});

// The address carries the state, so that a link shows the same.

const isOneOf = (choices) => (value) => choices.includes(value);
const isNumbers = (count, low, high) => (values) =>
  values.length === count && values.every((value) => value >= low && value <= high);
const VALID = {
  box: (box) =>
    isNumbers(4, LOW, HIGH)(box) && box[2] - box[0] >= SMALLEST && box[3] - box[1] >= SMALLEST,
  op: isOneOf(Object.keys(OPERATORS)),
  aggregate: isOneOf(["mean", "max"]),
  samplingRatio: isOneOf([0, 1, 2, 3, 4]),
  aligned: isOneOf([true, false]),
  bin: (bin) => isNumbers(2, 0, BINS - 1)(bin) && bin.every(Number.isInteger),
  photograph: isOneOf([true, false]),
};

// Fields that the address lacks, or whose value makes no sense, have their defaults.
function readAddress() {
  const parse = {
    object: (text) => text.split(",").map(Number),
    boolean: (text) => text === "true",
    number: Number,
    string: String,
  };
  state = { ...DEFAULTS };
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name in DEFAULTS) {
    const value = parse[typeof DEFAULTS[name]](given.get(name) ?? "");
    if (given.has(name) && VALID[name](value)) state[name] = value;
  }
  redraw();
}

// Browsers allow few changes of the address a second, so it waits until the box rests.
let waiting;
function writeAddress() {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const fields = Object.entries(state).map(([name, value]) => `${name}=${value}`);
    history.replaceState(null, "", `#${fields.join("&")}`);
  }, 200);
}

addEventListener("hashchange", readAddress);
readAddress();
