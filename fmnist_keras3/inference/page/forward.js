"use strict";
// What the model computes, from the list of operations that graph.py makes of it. Arrays are
// channels-last and without a batch; sums are in float64, values between operations in float32.

function decoded(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
  return bits & 32768 ? -size : size;
}

// The arrays of weights: float32; or 16 bits or int8 times a scale for each output channel.
function weights(told, bytes) {
  const view = new DataView(bytes.buffer), made = [];
  for (const {shape, dtype, at, scale} of told) {
    const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
    const scales = scale === undefined ? null : made[scale].values;
    for (let i = 0; i < values.length; i++) {
      let value;
      if (dtype === "float32") value = view.getFloat32(at + 4 * i, true);
      else if (dtype === "float16") value = half(view.getUint16(at + 2 * i, true));
      else value = view.getInt8(at + i);
      values[i] = scales ? value * scales[i % scales.length] : value;
    }
    made.push({shape, values});
  }
  return made;
}

function erf(x) { // within 1.2e-7 (Numerical Recipes, 6.2.2)
  const t = 1 / (1 + Math.abs(x) / 2);
  const terms = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806,
    0.09678418, 0.37409196, 1.00002368, -1.26551223];
  const size = 1 - t * Math.exp(-x * x + terms.reduce((sum, term) => sum * t + term, 0));
  return x < 0 ? -size : size;
}

const sigmoid = x => 1 / (1 + Math.exp(-x));
const softplus = x => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const hard = x => Math.min(Math.max(x + 3, 0), 6) / 6;
const ACTIVATIONS = {
  linear: x => x,
  relu: x => Math.max(x, 0),
  relu6: x => Math.min(Math.max(x, 0), 6),
  leaky_relu: (x, slope) => x < 0 ? slope * x : x,
  elu: (x, alpha) => x < 0 ? alpha * Math.expm1(x) : x,
  selu: x => 1.0507009873554805 * (x < 0 ? 1.6732632423543772 * Math.expm1(x) : x),
  gelu: x => x / 2 * (1 + erf(x / Math.SQRT2)),
  sigmoid,
  silu: x => x * sigmoid(x),
  hard_sigmoid: hard,
  hard_silu: x => x * hard(x),
  tanh: Math.tanh,
  softplus,
  softsign: x => x / (1 + Math.abs(x)),
  exponential: Math.exp,
  mish: x => x * Math.tanh(softplus(x)),
};
const MERGES = {
  add: (a, b) => a + b,
  subtract: (a, b) => a - b,
  multiply: (a, b) => a * b,
  maximum: Math.max,
  minimum: Math.min,
};

function softmaxed(values, width) {
  const made = new Float32Array(values.length);
  for (let i = 0; i < values.length; i += width) {
    const row = values.subarray(i, i + width), most = row.reduce((a, b) => Math.max(a, b));
    const shares = Array.from(row, x => Math.exp(x - most));
    const sum = shares.reduce((a, b) => a + b);
    shares.forEach((share, k) => { made[i + k] = share / sum; });
  }
  return made;
}

// Where the steps of each axis begin in an array of `shape`.
const strides = shape => shape.map((_, k) => shape.slice(k + 1).reduce((a, b) => a * b, 1));

// Fill an array of `shape` by the places that `at`, which is given the indices, finds in `values`.
function gathered(shape, values, at) {
  const made = new Float32Array(shape.reduce((a, b) => a * b, 1)), index = shape.map(() => 0);
  for (let i = 0; i < made.length; i++) {
    const place = at(index);
    made[i] = place < 0 ? 0 : values[place];
    for (let k = shape.length - 1; k >= 0 && ++index[k] === shape[k]; k--) index[k] = 0;
  }
  return made;
}

function conv(x, {kernel, bias, strides: [sy, sx], dilation: [dy, dx], groups, pads}, shape) {
  const [h, w, channels] = x.shape, [high, wide, filters] = shape;
  const [kh, kw, inside] = kernel.shape, some = filters / groups;
  const made = new Float32Array(high * wide * filters), sums = new Float64Array(filters);
  for (let i = 0, at = 0; i < high; i++) for (let j = 0; j < wide; j++, at += filters) {
    sums.set(bias.values);
    for (let ky = 0; ky < kh; ky++) {
      const y = i * sy - pads[0][0] + ky * dy;
      if (y < 0 || y >= h) continue;
      for (let kx = 0; kx < kw; kx++) {
        const c0 = j * sx - pads[1][0] + kx * dx;
        if (c0 < 0 || c0 >= w) continue;
        const from = (y * w + c0) * channels, weight = (ky * kw + kx) * inside * filters;
        for (let c = 0; c < channels; c++) {
          const value = x.values[from + c];
          if (value === 0) continue; // as half of what a ReLU leaves
          const first = groups === 1 ? 0 : Math.floor(c / inside) * some;
          const row = weight + (c % inside) * filters;
          for (let f = first; f < first + some; f++) sums[f] += value * kernel.values[row + f];
        }
      }
    }
    made.set(sums, at);
  }
  return made;
}

function dense(x, {kernel, bias}) {
  const [size, units] = kernel.shape, rows = x.values.length / size;
  const made = new Float32Array(rows * units), sums = new Float64Array(units);
  for (let r = 0; r < rows; r++) {
    sums.set(bias.values);
    for (let c = 0; c < size; c++) {
      const value = x.values[r * size + c];
      if (value !== 0) for (let f = 0; f < units; f++) sums[f] += value * kernel.values[c * units + f];
    }
    made.set(sums, r * units);
  }
  return made;
}

function pool(x, {window, strides: [sy, sx], pads}, shape, max) {
  const [h, w, channels] = x.shape, [high, wide] = shape;
  const made = new Float32Array(high * wide * channels);
  for (let i = 0, at = 0; i < high; i++) for (let j = 0; j < wide; j++) {
    const y0 = i * sy - pads[0][0], x0 = j * sx - pads[1][0];
    for (let c = 0; c < channels; c++, at++) {
      let sum = 0, count = 0, most = -Infinity;
      for (let y = Math.max(y0, 0); y < Math.min(y0 + window[0], h); y++)
        for (let u = Math.max(x0, 0); u < Math.min(x0 + window[1], w); u++) {
          const value = x.values[(y * w + u) * channels + c];
          sum += value;
          count++;
          if (value > most) most = value;
        }
      made[at] = max ? most : sum / count;
    }
  }
  return made;
}

function overall(x, max) {
  const channels = x.shape[2], made = new Float64Array(channels).fill(max ? -Infinity : 0);
  x.values.forEach((value, i) => {
    const c = i % channels;
    made[c] = max ? Math.max(made[c], value) : made[c] + value;
  });
  return Float32Array.from(made, v => max ? v : v * channels / x.values.length);
}

function merged(name, inputs, shape) {
  const [a, b] = inputs.map(x => {
    if (x.shape.every((n, k) => n === shape[k])) return x.values;
    const steps = strides(x.shape);
    const place = index => index.reduce((sum, n, k) => sum + (x.shape[k] > 1 ? n * steps[k] : 0), 0);
    return gathered(shape, x.values, place);
  });
  return a.map((value, i) => MERGES[name](value, b[i]));
}

function joined(inputs, shape, axis) {
  const made = new Float32Array(shape.reduce((a, b) => a * b, 1));
  const rows = shape.slice(0, axis).reduce((a, b) => a * b, 1);
  for (let r = 0, at = 0; r < rows; r++) for (const x of inputs) {
    const size = x.values.length / rows;
    made.set(x.values.subarray(r * size, (r + 1) * size), at);
    at += size;
  }
  return made;
}

function computed({kind, shape, options}, inputs) {
  const x = inputs[0];
  if (kind in MERGES) return merged(kind, inputs, shape);
  switch (kind) {
    case "affine": {
      const a = options.scale.values, b = options.shift.values;
      return x.values.map((value, i) => value * a[i % a.length] + b[i % b.length]);
    }
    case "conv": return conv(x, options, shape);
    case "dense": return dense(x, options);
    case "max_pool": return pool(x, options, shape, true);
    case "average_pool": return pool(x, options, shape, false);
    case "global_max": return overall(x, true);
    case "global_average": return overall(x, false);
    case "concatenate": return joined(inputs, shape, options.axis - 1);
    case "reshape": return x.values;
    case "transpose": {
      const steps = strides(x.shape), order = options.order.slice(1).map(k => steps[k - 1]);
      return gathered(shape, x.values, index => index.reduce((sum, n, k) => sum + n * order[k], 0));
    }
    case "pad": case "crop": {
      const sign = kind === "pad" ? 1 : -1, steps = strides(x.shape);
      const before = options.amounts.slice(1).map(pair => sign * pair[0]);
      return gathered(shape, x.values, index => {
        let place = 0;
        for (let k = 0; k < index.length; k++) {
          const n = index[k] - before[k];
          if (n < 0 || n >= x.shape[k]) return -1;
          place += n * steps[k];
        }
        return place;
      });
    }
    case "activation": {
      if (options.name === "softmax") return softmaxed(x.values, shape[shape.length - 1]);
      const activation = ACTIVATIONS[options.name];
      return x.values.map(value => activation(value, options.value));
    }
  }
  throw new Error(`no operation ${kind}`);
}

// Return what computes all values, by their names, of raw pixels 0..255.
function makeModel(told) {
  const arrays = weights(told.arrays, decoded(told.weights));
  const operations = told.operations.map(one => {
    const known = Object.entries(one.options);
    const options = known.map(([name, v]) => [name, v && v.array !== undefined ? arrays[v.array] : v]);
    return {...one, options: Object.fromEntries(options)};
  });
  return pixels => {
    const values = {pixels: {shape: told.shape, values: Float32Array.from(pixels)}};
    for (const one of operations) {
      const inputs = one.inputs.map(name => values[name]);
      values[one.output] = {shape: one.shape, values: computed(one, inputs)};
    }
    return values;
  };
}
