"use strict";
// Makes of a picture what the data set's images are: the steps of preparation.py, which explains
// them, in the same whole numbers, so that the same pixels give the same image.

const EDGE = 192, DARK = 64, CLUSTERS = 3, ROUNDS = 4, MEDIAN = 60, SPECK = 3, BITS = 24;
const TOUCHING = 24, NEAR = 24, APART = 60, OWN = [[0], [1], [2], [0, 1], [0, 2], [1, 2]];
const floor = Math.floor;
const sorted = values => Float64Array.from(values).sort();
const range = n => Array.from({length: n}, (_, k) => k);

// `strip(y0, y1)` returns the rows of a picture as RGBA bytes; nothing else is in memory.
function shrunk(width, height, strip, edge) {
  const longest = Math.max(width, height);
  const less = n => Math.max(1, floor((2 * n * edge + longest) / (2 * longest)));
  const [w, h] = [width, height].map(n => longest <= edge ? n : less(n));
  const [rows, columns] = [[h, height], [w, width]].map(([n, full]) =>
    range(n + 1).map(k => floor(k * full / n)));
  const pixels = new Uint8Array(w * h * 3), alpha = new Uint8Array(w * h);
  const step = Math.max(1, floor(h * 2e6 / (width * height)));
  for (let i = 0; i < h; i += step) {
    const end = Math.min(i + step, h), start = rows[i], bytes = strip(start, rows[end]);
    for (let row = i; row < end; row++) for (let column = 0; column < w; column++) {
      const sums = [0, 0, 0, 0];
      for (let y = rows[row]; y < rows[row + 1]; y++)
        for (let x = columns[column]; x < columns[column + 1]; x++) {
          const at = 4 * ((y - start) * width + x), a = bytes[at + 3];
          sums[3] += a;
          for (let c = 0; c < 3; c++)
            sums[c] += a === 255 ? bytes[at + c] : floor((bytes[at + c] * a + 255 * (255 - a) + 127) / 255);
        }
      const count = (rows[row + 1] - rows[row]) * (columns[column + 1] - columns[column]);
      const means = sums.map(sum => floor((2 * sum + count) / (2 * count))), at = row * w + column;
      pixels.set(means.slice(0, 3), 3 * at);
      alpha[at] = means[3];
    }
  }
  return {w, h, pixels, alpha: alpha.every(a => a === 255) ? null : alpha};
}

// The garment of a picture as an image of the data set, and where it was found.
function prepared(picture, [high, wide], invert) {
  const {w, h} = picture, edge = border(h, w);
  let values = grey(picture.pixels);
  const middle = () => sorted(edge.map(at => values[at]))[edge.length >> 1];
  if (invert === "yes" || (invert === "auto" && middle() >= DARK)) values = values.map(v => 255 - v);
  if (h === high && w === wide && invert !== "yes" && middle() === 0)
    return {image: Uint8Array.from(values), mask: null}; // it is one of the data set's own
  const mask = garment(picture, edge), inner = withoutRim(mask, h, w, high, wide);
  const shown = sorted(values.filter((_, at) => mask[at]));
  const lift = Math.max(0, MEDIAN - shown[shown.length >> 1]);
  let top = h, bottom = 0, left = w, right = 0;
  inner.forEach((inside, at) => {
    if (!inside) return;
    const y = floor(at / w), x = at % w;
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    [left, right] = [Math.min(left, x), Math.max(right, x)];
  });
  const cut = {w: right - left + 1, h: bottom - top + 1};
  cut.values = new Float64Array(cut.w * cut.h);
  for (let y = top; y <= bottom; y++) for (let x = left; x <= right; x++) {
    const at = y * w + x;
    if (!mask[at]) continue;
    const value = Math.min(values[at] + lift, 255);
    cut.values[(y - top) * cut.w + x - left] = inner[at] ? value : value >> 1;
  }
  const image = new Uint8Array(high * wide);
  centred(scaled(cut, 1, [high, wide], 1), 1, image, [high, wide]);
  return {image, mask};
}

// The whole picture fitted into a size, RGB, for models of colours.
function fitted(picture, size, invert) {
  const {w, h} = picture, values = Float64Array.from(picture.pixels, v => invert ? 255 - v : v);
  const edge = border(h, w), image = new Uint8Array(size[0] * size[1] * 3);
  const colour = range(3).map(c => sorted(edge.map(at => values[3 * at + c]))[edge.length >> 1]);
  image.forEach((_, at) => { image[at] = colour[at % 3]; });
  centred(scaled({w, h, values}, 3, size, 0), 3, image, size);
  return image;
}

const grey = pixels => range(pixels.length / 3).map(k => weighted(pixels, 3 * k) + 32768 >> 16);
const weighted = (pixels, at) => 19595 * pixels[at] + 38470 * pixels[at + 1] + 7471 * pixels[at + 2];

// The places of a frame of a 24th of the shorter side.
function border(h, w) {
  const thick = Math.max(1, floor(Math.min(h, w) / 24));
  const framed = (n, size) => n < thick || n >= size - thick;
  return range(h * w).filter(at => framed(floor(at / w), h) || framed(at % w, w));
}

function garment(picture, edge) {
  const {w, h, alpha} = picture, count = w * h;
  let found;
  if (alpha && alpha.filter(a => a < 128).length / count > 0.02) {
    found = Uint8Array.from(alpha, a => a >= 128 ? 1 : 0);
  } else {
    const [far, background] = distance(picture, edge);
    const order = sorted(background.map(at => far[at])), n = order.length;
    const noise = Math.min(order[floor(n * 9 / 10)], 3 * order[n >> 1] + TOUCHING);
    const threshold = Math.max(floor(otsu(far) / 3), noise + 6);
    found = Uint8Array.from(far, v => v > threshold ? 1 : 0);
    found = spread(spread(found, h, w, 1, 0), h, w, 1, 1);
    const {parts, sizes} = labelled(found, h, w);
    const most = Math.max(0, ...sizes);
    found = found.map((v, at) => v && 100 * sizes[parts[at]] >= SPECK * most ? 1 : 0);
    const large = new Uint8Array((h + 4) * (w + 4));
    found.forEach((v, at) => { large[(floor(at / w) + 2) * (w + 4) + at % w + 2] = v; });
    const closed = spread(spread(large, h + 4, w + 4, 2, 1), h + 4, w + 4, 2, 0);
    const whole = found.map((v, at) => v | closed[(floor(at / w) + 2) * (w + 4) + at % w + 2]);
    const outside = outer(whole, h, w);
    found = found.map((v, at) => v || (!whole[at] && !outside[at]) ? 1 : 0);
  }
  const share = found.reduce((a, b) => a + b, 0) / count;
  return share > 0.002 ? found : found.fill(1);
}

// Its outermost pixels show the background, too.
function withoutRim(mask, h, w, high, wide) {
  const places = range(h * w).filter(at => mask[at]);
  const extent = of => 1 + places.reduce((most, at) => Math.max(most, of(at)), 0)
    - places.reduce((least, at) => Math.min(least, of(at)), Infinity);
  if (extent(at => floor(at / w)) < 2 * high && extent(at => at % w) < 2 * wide) return mask;
  const inner = spread(mask.map(v => 1 - v), h, w, 1, 1).map(v => 1 - v), near = spread(inner, h, w, 1, 1);
  return mask.map((v, at) => inner[at] || (v && !near[at]) ? 1 : 0);
}

// Dilation (to 1) or erosion (to 0) by a square; outside of the picture there is 0.
function spread(mask, h, w, reach, to) {
  const along = (given, n, step) => given.map((_, at) => {
    const place = floor(at / step) % n;
    for (let k = -reach; k <= reach; k++) {
      const inside = place + k >= 0 && place + k < n;
      if ((inside ? given[at + k * step] : 0) === to) return to;
    }
    return 1 - to;
  });
  return along(along(mask, w, 1), h, w);
}

// Parts of neighbours in eight directions, with their sizes.
function labelled(mask, h, w) {
  const parts = new Int32Array(h * w).fill(-1), sizes = [];
  mask.forEach((inside, start) => {
    if (!inside || parts[start] >= 0) return;
    const part = sizes.length, waiting = [start];
    sizes.push(0);
    parts[start] = part;
    while (waiting.length) {
      const at = waiting.pop(), y = floor(at / w), x = at % w;
      sizes[part]++;
      for (let i = Math.max(y - 1, 0); i <= Math.min(y + 1, h - 1); i++)
        for (let j = Math.max(x - 1, 0); j <= Math.min(x + 1, w - 1); j++)
          if (mask[i * w + j] && parts[i * w + j] < 0) {
            parts[i * w + j] = part;
            waiting.push(i * w + j);
          }
    }
  });
  return {parts, sizes};
}

// What of the background is joined to the picture's edge, by neighbours in four directions.
function outer(mask, h, w) {
  const found = new Uint8Array(h * w), waiting = [];
  const visit = at => {
    if (mask[at] || found[at]) return;
    found[at] = 1;
    waiting.push(at);
  };
  for (let y = 0; y < h; y++) { visit(y * w); visit(y * w + w - 1); }
  for (let x = 0; x < w; x++) { visit(x); visit((h - 1) * w + x); }
  while (waiting.length) {
    const at = waiting.pop(), x = at % w;
    if (x > 0) visit(at - 1);
    if (x < w - 1) visit(at + 1);
    if (at >= w) visit(at - w);
    if (at < w * (h - 1)) visit(at + w);
  }
  return found;
}

const apart = (pixels, at, [r, g, b]) =>
  Math.abs(pixels[at] - r) + Math.abs(pixels[at + 1] - g) + Math.abs(pixels[at + 2] - b);

function distance(picture, edge) {
  const {w, h, pixels} = picture;
  const typical = values => sorted(edge.map(at => values[at]))[floor(edge.length * 3 / 4)];
  for (const ownKnown of [false, true]) {
    const light = surface(picture, edge), {made, nearest, counts} = colours(pixels, edge);
    const most = Math.max(...counts);
    const common = made.filter((_, k) => counts[k] * 10 >= edge.length || counts[k] === most);
    const flat = range(w * h).map(at => Math.min(...common.map(c => apart(pixels, 3 * at, c))));
    const explained = typical(light) <= typical(flat);
    const mine = explained || ownKnown ? [] : own(picture, edge, made, nearest, counts);
    if (!mine.length)
      return [light.map((v, at) => Math.min(explained ? v : Math.min(v, flat[at]), 255)), edge];
    edge = edge.filter((_, k) => !mine.includes(nearest[k]));
  }
}

// Which colours of the border are those of a garment that touches it.
function own({w, h, pixels}, edge, colours, nearest, counts) {
  const noise = colours.map((colour, k) =>
    sorted(edge.filter((_, i) => nearest[i] === k).map(at => apart(pixels, 3 * at, colour)))[counts[k] >> 1]);
  const inside = colours.map(() => 0);
  let middle = 0;
  for (let y = h >> 2; y < h - (h >> 2); y++) for (let x = w >> 2; x < w - (w >> 2); x++) {
    const far = colours.map(colour => apart(pixels, 3 * (y * w + x), colour));
    const k = far.indexOf(Math.min(...far));
    if (counts[k] && far[k] <= 2 * noise[k] + NEAR) inside[k]++;
    middle++;
  }
  const n = edge.length, sum = (values, of) => of.reduce((total, k) => total + values[k], 0);
  let best = 0, found = [];
  for (const mine of OWN) {
    const others = range(CLUSTERS).filter(k => !mine.includes(k) && counts[k]);
    if (!others.length || !mine.every(k => counts[k])) continue;
    const far = Math.min(...mine.flatMap(a => others.map(b => apart(colours[a], 0, colours[b]))));
    const there = sum(counts, mine), gain = 2 * sum(inside, mine) * n - (n + there) * middle;
    if (far >= APART && 10 * there <= 9 * n && gain > best) [best, found] = [gain, mine];
  }
  return found;
}

function colours(pixels, edge) {
  const n = edge.length, order = [...edge];
  order.sort((a, b) => weighted(pixels, 3 * a) - weighted(pixels, 3 * b)); // stable
  const colour = at => [...pixels.slice(3 * at, 3 * at + 3)];
  const made = range(CLUSTERS).map(k => colour(order[floor((2 * k + 1) * n / 6)]));
  let nearest, counts;
  for (let round = 0; round < ROUNDS; round++) {
    counts = range(CLUSTERS).map(() => 0);
    const sums = range(CLUSTERS).map(() => [0, 0, 0]);
    nearest = edge.map(at => {
      const far = made.map(c => apart(pixels, 3 * at, c));
      const k = far.indexOf(Math.min(...far));
      counts[k]++;
      for (let c = 0; c < 3; c++) sums[k][c] += pixels[3 * at + c];
      return k;
    });
    counts.forEach((count, k) => { if (count) made[k] = sums[k].map(sum => floor(sum / count)); });
  }
  return {made, nearest, counts};
}

// How far each pixel is from the quadratic surface through the border.
function surface({w, h, pixels}, edge) {
  const terms = at => {
    const x = at % w, y = floor(at / w);
    return [1, x, y, x * x, x * y, y * y];
  };
  const most = terms(w * h - 1);
  let used = edge, found = range(6).map(() => [0n, 0n, 0n]);
  const predicted = at => {
    // Where float64 holds the sums exactly, it is as good as whole numbers of any length.
    const t = terms(at);
    return range(3).map(c => exact
      ? floor(t.reduce((sum, term, k) => sum + term * small[k][c], 0) / 2 ** BITS)
      : Number(t.reduce((sum, term, k) => sum + BigInt(term) * found[k][c], 0n) >> BigInt(BITS)));
  };
  let small = found.map(row => row.map(Number)), exact = true;
  for (let round = 0; round < 3; round++) {
    const sums = range(6).map(() => new Float64Array(9));
    for (const at of used) {
      const t = terms(at);
      for (let i = 0; i < 6; i++) {
        for (let j = 0; j < 6; j++) sums[i][j] += t[i] * t[j];
        for (let c = 0; c < 3; c++) sums[i][6 + c] += t[i] * pixels[3 * at + c];
      }
    }
    const solved = solve(sums.map(row => Array.from(row, BigInt)));
    if (!solved) break;
    found = solved;
    small = found.map(row => row.map(Number));
    exact = [0, 1, 2].every(c => most.reduce((sum, n, k) => sum + n * Math.abs(small[k][c]), 0) < 2 ** 52);
    const off = edge.map(at => apart(pixels, 3 * at, predicted(at)));
    const limit = 2 * sorted(off)[off.length >> 1] + 6;
    used = edge.filter((_, k) => off[k] <= limit);
  }
  return range(w * h).map(at => apart(pixels, 3 * at, predicted(at)));
}

function divided(a, b) { // rounded down, as Python's //
  const quotient = a / b;
  return quotient * b !== a && (a < 0n) !== (b < 0n) ? quotient - 1n : quotient;
}

function solve(rows) {
  const n = rows.length;
  let last = 1n;
  for (let k = 0; k < n; k++) {
    if (rows[k][k] === 0n) return null;
    for (let i = 0; i < n; i++) {
      const factor = rows[i][k];
      if (i !== k) rows[i] = rows[i].map((a, j) => divided(rows[k][k] * a - factor * rows[k][j], last));
    }
    last = rows[k][k];
  }
  return rows.map((row, i) => row.slice(n).map(v => divided(v << BigInt(BITS), row[i])));
}

function otsu(values) {
  const counts = range(256).map(() => 0n);
  for (const value of values) counts[value]++;
  const total = BigInt(values.length);
  const all = counts.reduce((sum, count, value) => sum + BigInt(value) * count, 0n);
  let best = [0n, 1n], threshold = 0, n = 0n, s = 0n;
  counts.forEach((count, value) => {
    n += count;
    s += BigInt(value) * count;
    if (n <= 0n || n >= total) return;
    const score = [(all * n - total * s) ** 2n, n * (total - n)];
    if (score[0] * best[1] > best[0] * score[1]) [best, threshold] = [score, value];
  });
  return threshold;
}

function scaled({w, h, values}, channels, [high, wide], margin) {
  const [part, whole] = h * wide >= w * high ? [high, h] : [wide, w];
  const [tall, broad] = [[h, high], [w, wide]].map(([n, most]) =>
    Math.min(most, Math.max(1, floor((2 * n * part + whole) / (2 * whole)))));
  const bounds = (n, full) => range(n).map(i => [
    floor((4 * i + margin) * full / (4 * n)), Math.ceil((4 * i + 4 - margin) * full / (4 * n))]);
  const made = [];
  for (const [y0, y1] of bounds(tall, h)) for (const [x0, x1] of bounds(broad, w))
    for (let c = 0; c < channels; c++) {
      let sum = 0;
      for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) sum += values[(y * w + x) * channels + c];
      const count = (y1 - y0) * (x1 - x0);
      made.push(floor((2 * sum + count) / (2 * count)));
    }
  return {w: broad, h: tall, values: made};
}

function centred({w, h, values}, channels, image, [high, wide]) {
  const top = floor((high - h) / 2), left = floor((wide - w) / 2);
  for (let y = 0; y < h; y++)
    image.set(values.slice(y * w * channels, (y + 1) * w * channels), ((top + y) * wide + left) * channels);
}
