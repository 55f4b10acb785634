"use strict";
// The page: a board, pictures, and what the model says of them.

const told = JSON.parse(document.getElementById("model").textContent);
const model = makeModel(told);
const [H, W] = told.size, C = told.channels, PIXELS = H * W;
const MOST_PIXELS = 50e6; // of a picture, as `fmnist predict` takes
const $ = id => document.getElementById(id);
const percent = share => `${Math.min(100 * share, 99.9).toFixed(1)} %`; // never a rounded certainty

let image = new Uint8Array(PIXELS * C); // what the model sees
let picture = null; // the one that it was made of, shrunk
let past = [];
let cursor = null; // of the keyboard: row and column
let milliseconds = 0;
let waiting = 0; // the timer of the next answer

// Probabilities of an image, all values that led to them, and the free energy of its logits.
function classified(pixels) {
  const start = performance.now(), values = model(pixels), last = told.operations.at(-1);
  milliseconds = performance.now() - start;
  const shares = values[last.output].values;
  const raw = last.options.name === "softmax" ? values[last.inputs[0]].values : null;
  const logits = raw ? Array.from(raw, v => v * told.temperature) : Array.from(shares, p => Math.log(Math.max(p, 1e-7)));
  const most = Math.max(...logits);
  return {shares, values, energy: -most - Math.log(logits.reduce((sum, v) => sum + Math.exp(v - most), 0))};
}

function paint(canvas, h, w, colour) {
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d"), data = context.createImageData(w, h);
  for (let at = 0; at < h * w; at++) data.data.set([...colour(at), 255], 4 * at);
  context.putImageData(data, 0, 0);
  return context;
}

const colourOf = pixels => at => C === 3 ? pixels.subarray(3 * at, 3 * at + 3) : [pixels[at], pixels[at], pixels[at]];

function drawBoard() {
  const context = paint($("board"), H, W, colourOf(image));
  if (cursor && document.activeElement === $("board")) {
    context.fillStyle = "rgb(86 180 233 / .75)";
    context.fillRect(cursor[1], cursor[0], 1, 1);
  }
}

const bars = told.classes.map(name => {
  const item = document.createElement("li"), label = document.createElement("span");
  const track = document.createElement("span"), bar = document.createElement("i"), value = document.createElement("span");
  label.textContent = name;
  track.className = "track";
  value.className = "number";
  track.append(bar);
  item.append(label, track, value);
  $("bars").append(item);
  return {item, bar, value};
});

function verdict(element, name, share) {
  element.replaceChildren(Object.assign(document.createElement("span"), {textContent: name}),
    Object.assign(document.createElement("b"), {textContent: percent(share)}));
}

let announcement = 0;
function say(text) { // when the drawing rests, for screen readers
  clearTimeout(announcement);
  announcement = setTimeout(() => { $("said").textContent = text; }, 600);
}

function answer() {
  waiting = 0;
  const empty = image.every(v => v === 0), found = empty ? null : classified(image);
  const shares = found ? found.shares : told.classes.map(() => 0);
  const best = found ? shares.indexOf(Math.max(...shares)) : -1;
  bars.forEach(({item, bar, value}, k) => {
    item.className = k === best ? "best" : "";
    bar.style.width = `${100 * shares[k]}%`;
    value.textContent = found ? percent(shares[k]) : "–";
  });
  $("verdict").classList.toggle("waiting", empty);
  if (empty) {
    $("verdict").textContent = "Nothing yet: the board is empty.";
    $("short").textContent = "";
  } else {
    verdict($("verdict"), told.classes[best], shares[best]);
    verdict($("short"), told.classes[best], shares[best]);
    say(`${told.classes[best]}, ${percent(shares[best])}`);
  }
  const unusual = found && told.energy !== null && found.energy > told.energy + 1e-3;
  $("unusual").textContent = unusual ? "Unusual picture: the model has less to go by than in 95 % of its test images." : "";
  showMaps(found && found.values);
}

// The first convolution, after its activation.
const first = told.operations.find(one => one.kind === "conv");
const seen = first && (told.operations.find(one => one.kind === "activation" && one.inputs[0] === first.output) || first);
const maps = range(first ? Math.min(seen.shape[2], 64) : 0).map(() => {
  const canvas = document.createElement("canvas");
  $("maps").append(canvas);
  return canvas;
});
$("layer").hidden = !first;
if (first) $("maps").ariaLabel = `${maps.length} maps of ${seen.shape[0]} by ${seen.shape[1]}: what each filter of the first layer found`;

function showMaps(values) {
  if (!first) return;
  const [h, w, channels] = seen.shape;
  maps.forEach((canvas, c) => {
    const map = values ? range(h * w).map(at => values[seen.output].values[at * channels + c]) : [0];
    const most = Math.max(...map), least = Math.min(0, ...map);
    paint(canvas, h, w, at => Array(3).fill(values && most > least ? 255 * (map[at] - least) / (most - least) : 0));
  });
}

function refresh() { // at once, or when drawing rests where the model takes long
  drawBoard();
  clearTimeout(waiting);
  waiting = setTimeout(answer, milliseconds > 40 ? 150 : 0);
}

function remember() {
  past.push({image: image.slice(), picture});
  past = past.slice(-100);
  $("undo").disabled = false;
}

function undo() {
  if (!past.length) return;
  ({image, picture} = past.pop());
  $("undo").disabled = !past.length;
  showPreparation();
  refresh();
}

const tool = () => document.querySelector("input[name=tool]:checked").value;

// A round pen from one point to another, in pixels of the image.
function stroke(from, to, erase) {
  const radius = Number($("size").value) / 2, shade = Number($("shade").value);
  const length2 = (to[0] - from[0]) ** 2 + (to[1] - from[1]) ** 2;
  for (let at = 0; at < PIXELS; at++) {
    const y = Math.floor(at / W) + 0.5, x = at % W + 0.5;
    const along = length2 ? ((y - from[0]) * (to[0] - from[0]) + (x - from[1]) * (to[1] - from[1])) / length2 : 0;
    const t = Math.min(Math.max(along, 0), 1);
    const far = Math.hypot(y - from[0] - t * (to[0] - from[0]), x - from[1] - t * (to[1] - from[1]));
    const cover = Math.min(Math.max(radius + 0.5 - far, 0), 1);
    if (!cover) continue;
    for (let c = 0; c < C; c++) {
      const value = image[at * C + c];
      image[at * C + c] = erase ? value * (1 - cover) : value + (shade - value) * (cover === 1 ? 1 : shade > value ? cover : 0);
    }
  }
}

function fill([y, x]) {
  const start = Math.floor(y) * W + Math.floor(x), level = image[start * C], shade = Number($("shade").value);
  const inside = new Uint8Array(PIXELS), todo = [start];
  while (todo.length) {
    const at = todo.pop();
    if (inside[at] || Math.abs(image[at * C] - level) > 40) continue;
    inside[at] = 1;
    if (at % W) todo.push(at - 1);
    if (at % W < W - 1) todo.push(at + 1);
    if (at >= W) todo.push(at - W);
    if (at < PIXELS - W) todo.push(at + W);
  }
  inside.forEach((v, at) => { if (v) image.fill(shade, at * C, at * C + C); });
}

function use(point, before) {
  if (tool() === "fill") fill(point);
  else stroke(before || point, point, tool() === "eraser");
  refresh();
}

function pointOf(event) {
  const box = $("board").getBoundingClientRect(), edge = $("board").clientLeft;
  const share = (at, from, size) => Math.min(Math.max((at - from - edge) / (size - 2 * edge), 0), 1 - 1e-6);
  return [H * share(event.clientY, box.top, box.height), W * share(event.clientX, box.left, box.width)];
}

let drawn = null; // where the pen is
$("board").addEventListener("pointerdown", event => {
  if (event.button) return;
  $("board").setPointerCapture(event.pointerId);
  cursor = null;
  remember();
  drawn = pointOf(event);
  use(drawn);
});
$("board").addEventListener("pointermove", event => {
  if (!drawn || tool() === "fill") return;
  const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const one of events.length ? events : [event]) {
    const point = pointOf(one);
    stroke(drawn, point, tool() === "eraser");
    drawn = point;
  }
  refresh();
});
for (const end of ["pointerup", "pointercancel"]) $("board").addEventListener(end, () => { drawn = null; });

const ARROWS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
$("board").addEventListener("keydown", event => {
  const arrow = ARROWS[event.key], old = cursor || [H >> 1, W >> 1];
  const middle = ([y, x]) => [y + 0.5, x + 0.5];
  if (arrow) {
    const inside = (n, size) => Math.min(Math.max(n, 0), size - 1);
    cursor = cursor ? [inside(old[0] + arrow[0], H), inside(old[1] + arrow[1], W)] : old;
    if (event.shiftKey) {
      remember();
      use(middle(cursor), middle(old));
    } else {
      drawBoard();
      say(`row ${cursor[0] + 1}, column ${cursor[1] + 1}, ${image[(cursor[0] * W + cursor[1]) * C] ? "bright" : "black"}`);
    }
  } else if (event.key === " " || event.key === "Enter") {
    cursor = old;
    remember();
    use(middle(cursor));
  } else return;
  event.preventDefault();
});
for (const change of ["focus", "blur"]) $("board").addEventListener(change, drawBoard);
document.addEventListener("keydown", event => {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  undo();
});
$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", () => {
  remember();
  image = new Uint8Array(PIXELS * C);
  picture = null;
  showPreparation();
  refresh();
});

// Pictures ------------------------------------------------------------------------------------

async function open(file) {
  $("refused").textContent = "";
  let bitmap;
  try {
    const options = {colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image"};
    bitmap = await createImageBitmap(file, options);
  } catch {
    $("refused").textContent = `${file.name || "This"} is no picture that this browser can read. Save it as JPEG or PNG.`;
    return;
  }
  const {width, height} = bitmap;
  if (width * height > MOST_PIXELS) {
    $("refused").textContent = `The picture has ${width} x ${height} pixels; ${MOST_PIXELS / 1e6} million are allowed. Make it smaller.`;
    return;
  }
  const canvas = new OffscreenCanvas(1, 1);
  const strip = (y0, y1) => {
    canvas.width = width;
    canvas.height = y1 - y0;
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(bitmap, 0, -y0);
    return context.getImageData(0, 0, width, y1 - y0).data;
  };
  remember();
  picture = {...shrunk(width, height, strip, Math.max(EDGE, 2 * H, 2 * W)), name: file.name || ""};
  bitmap.close();
  prepare();
}

function prepare() {
  const invert = $("invert").value;
  const made = told.garments ? prepared(picture, [H, W], invert) : {image: fitted(picture, [H, W], invert === "yes"), mask: null};
  const once = made.image;
  image = once.length === PIXELS * C ? once : Uint8Array.from({length: PIXELS * C}, (_, k) => once[Math.floor(k / C)]);
  picture.mask = made.mask;
  picture.image = image.slice();
  showPreparation();
  refresh();
}

function showPreparation() {
  $("preparation").hidden = !picture;
  if (!picture) return;
  const {w, h, pixels, alpha, mask} = picture;
  paint($("step1"), h, w, at => pixels.subarray(3 * at, 3 * at + 3));
  $("found").hidden = !mask;
  if (mask) paint($("step2"), h, w, at => mask[at] ? pixels.subarray(3 * at, 3 * at + 3) : [90, 120, 150]);
  paint($("step3"), H, W, colourOf(picture.image));
  $("caption3").textContent = `${mask ? 3 : 2}. ${H} × ${W}, as the model sees it`;
}
$("invert").addEventListener("change", () => { remember(); prepare(); });

for (const id of ["file", "photo"]) $(id).addEventListener("change", event => {
  if (event.target.files[0]) open(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
});
document.addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(one => one.type.startsWith("image/"));
  if (file) open(file);
});

// Examples, and the check ---------------------------------------------------------------------

const given = decoded(told.examples.pixels), count = told.examples.expected.length;
const example = k => given.slice(k * PIXELS * C, (k + 1) * PIXELS * C);
let difference = 0, changed = 0;
const likeliest = row => row.indexOf(Math.max(...row));
const times = range(count).map(k => {
  const {shares} = classified(example(k)), expected = told.examples.expected[k];
  expected.forEach((p, c) => { difference = Math.max(difference, Math.abs(p - shares[c])); });
  changed += likeliest(Array.from(shares)) !== likeliest(expected);
  if (told.examples.shown) {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    button.type = "button";
    button.ariaLabel = `Example ${k + 1}`;
    paint(canvas, H, W, colourOf(example(k)));
    button.append(canvas);
    button.addEventListener("click", () => {
      remember();
      image = example(k);
      picture = null;
      showPreparation();
      refresh();
    });
    $("examples").append(button);
  }
  return milliseconds;
}).sort((a, b) => a - b);
const right = difference <= told.tolerance;
$("exactness").textContent = `Weights are kept in ${told.precision}. Checked in this browser just now: on ${count} images the `
  + `probabilities differ by at most ${difference.toPrecision(1)} from the trained model's, `
  + `${changed ? changed : "no"} label${changed > 1 ? "s" : ""} changed${right ? "" : " – MORE THAN THEY MAY: do not trust this page"}. `
  + `One image takes ${times[count >> 1].toFixed(1)} ms here.`;
$("exactness").dataset.difference = difference;
if (!right) $("exactness").className = "note";
$("board").ariaLabel = `Drawing board of ${H} by ${W} pixels`;
refresh();
