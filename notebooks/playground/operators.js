// RoIPool, RoIWarp and RoIAlign of one channel and one box, as roi_pool.py, roi_warp.py,
// roi_align.py and rois.py in reference/ compute them: the same steps in the same order, in
// float64.
//
// `features` is a list of H rows with W numbers, `box` is [x1, y1, x2, y2] in image pixels, P is
// the output size. Every operator returns
//   out            [P][P]
//   used           the box that it works on, feature pixels
//   weights(p, q)  [H][W]: out[p][q] is the sum over the map of weight times feature, so the
//                  weights are also its gradient with respect to the features
//   reads(p, q)    [H][W]: true for the features that out[p][q] is computed from
"use strict";

const range = (count) => Array.from({ length: count }, (_, index) => index);
const matrix = (height, width, value) =>
  range(height).map((i) => range(width).map((j) => value(i, j)));
const outer = (column, row) => column.map((a) => row.map((b) => a * b));
const clip = (value, low, high) => Math.min(Math.max(value, low), high);

// Where the samples of each bin lie along one axis, [bins][g]. Position i is the centre of pixel i.
function samplePositions(low, high, bins, samplingRatio, aligned) {
  const start = aligned ? low - 0.5 : low;
  let length = (aligned ? high - 0.5 : high) - start;
  if (!aligned) length = Math.max(length, 1);
  const side = length / bins;
  let count = samplingRatio > 0 ? samplingRatio : Math.ceil(side);
  if (aligned && high < low) count = 0;
  return matrix(bins, count, (p, i) => start + p * side + ((i + 0.5) * side) / count);
}

// Whether a sample counts as inside an axis of `size` pixels: at most one pixel beyond its ends.
const isInside = (position, size) => position >= -1 && position <= size;

// The weights [size] that one sample gives to the pixels of its axis: those of its two neighbours.
function sampleWeights(position, size) {
  const weights = new Array(size).fill(0);
  if (isInside(position, size)) {
    const nearest = clip(position, 0, size - 1);
    const lower = Math.trunc(nearest);
    const upper = Math.min(lower + 1, size - 1);
    weights[lower] += 1 - (nearest - lower);
    weights[upper] += nearest - lower;
  }
  return weights;
}

// The weights of the samples of each bin, [bins][g][size], and their mean, [bins][size].
const sampleMatrix = (positions, size) =>
  positions.map((bin) => bin.map((position) => sampleWeights(position, size)));
const interpolationMatrix = (samples, size) =>
  samples.map((bin) =>
    range(size).map((i) => bin.reduce((sum, w) => sum + w[i], 0) / Math.max(bin.length, 1)),
  );

// a X bᵀ, for a [p][h], X [h][w] and b [q][w]. Pixels without a weight are skipped.
function product(a, x, b) {
  const dot = (weights, value) =>
    weights.reduce((sum, weight, i) => (weight ? sum + weight * value(i) : sum), 0);
  return a.map((rows) => b.map((columns) => dot(rows, (i) => dot(columns, (j) => x[i][j]))));
}

// The mean of the samples of each bin; `rows` and `columns` are the sample matrices of y and x.
function average(features, rows, columns) {
  const a = interpolationMatrix(rows, features.length);
  const b = interpolationMatrix(columns, features[0].length);
  const weights = (p, q) => outer(a[p], b[q]);
  const reads = (p, q) => weights(p, q).map((row) => row.map((weight) => weight > 0));
  return { out: product(a, features, b), weights, reads };
}

// The largest sample of each bin, which alone gets the gradient; of equal ones the first.
function largest(features, rows, columns) {
  const chosen = rows.map((bin) => columns.map((other) => argmax(product(bin, features, other))));
  const nothing = () => features.map((row) => row.map(() => 0));
  return {
    out: chosen.map((row) => row.map((best) => (best ? best.value : 0))),
    weights: (p, q) => {
      const best = chosen[p][q];
      return best ? outer(rows[p][best.i], columns[q][best.j]) : nothing();
    },
    reads: average(features, rows, columns).reads,
  };
}

// The largest value of a matrix and its place, in row-major order the first; null if it is empty.
function argmax(values) {
  let best = null;
  values.forEach((row, i) =>
    row.forEach((value, j) => {
      if (best === null || value > best.value) best = { value, i, j };
    }),
  );
  return best;
}

// RoIAlign. It also returns `ys` and `xs`, the positions of the samples of each bin.
function roiAlign(features, box, options) {
  const { outputSize, spatialScale, samplingRatio, aligned, aggregate } = options;
  const [x1, y1, x2, y2] = box.map((value) => value * spatialScale);
  const ys = samplePositions(y1, y2, outputSize, samplingRatio, aligned);
  const xs = samplePositions(x1, x2, outputSize, samplingRatio, aligned);
  const rows = sampleMatrix(ys, features.length);
  const columns = sampleMatrix(xs, features[0].length);
  const pooled = { mean: average, max: largest }[aggregate](features, rows, columns);
  const used = aligned ? [x1, y1, x2, y2] : [x1, y1, Math.max(x2, x1 + 1), Math.max(y2, y1 + 1)];
  return { ...pooled, used, ys, xs };
}

// Half a pixel rounds away from zero.
function round(value) {
  const whole = Math.trunc(value);
  return whole + Math.sign(value) * (Math.abs(value - whole) >= 0.5 ? 1 : 0);
}

// The box rounded to whole feature pixels. Its last pixel belongs to it, so it ends one further.
function wholePixels(box, spatialScale) {
  const [x1, y1, x2, y2] = box.map((value) => round(value * spatialScale));
  return [x1, y1, Math.max(x2, x1) + 1, Math.max(y2, y1) + 1];
}

// RoIWarp: the box is rounded, then sampled as RoIAlign without the half pixel does it.
function roiWarp(features, box, options) {
  const whole = wholePixels(box, options.spatialScale);
  return roiAlign(features, whole, { ...options, spatialScale: 1, aligned: false });
}

// RoIPool: the box and its bins are rounded; a bin takes its largest feature, an empty one 0.
function roiPool(features, box, { outputSize, spatialScale }) {
  const used = wholePixels(box, spatialScale);
  const rows = binEdges(used[1], used[3], outputSize, features.length);
  const columns = binEdges(used[0], used[2], outputSize, features[0].length);
  const chosen = rows.map(([y1, y2]) =>
    columns.map(([x1, x2]) => argmax(features.slice(y1, y2).map((row) => row.slice(x1, x2)))),
  );
  const zeros = features.map((row) => row.map(() => 0));
  return {
    out: chosen.map((row) => row.map((best) => (best ? best.value : 0))),
    used,
    rows,
    columns,
    weights: (p, q) => {
      const best = chosen[p][q];
      const takes = (i, j) => best && i === rows[p][0] + best.i && j === columns[q][0] + best.j;
      return zeros.map((row, i) => row.map((_, j) => (takes(i, j) ? 1 : 0)));
    },
    reads: (p, q) => {
      const [[y1, y2], [x1, x2]] = [rows[p], columns[q]];
      return zeros.map((row, i) => row.map((_, j) => y1 <= i && i < y2 && x1 <= j && j < x2));
    },
  };
}

// The first and the one past the last pixel of each bin along one axis, [bins][2].
function binEdges(start, end, bins, size) {
  const side = (end - start) / bins;
  return range(bins).map((p) => [
    clip(Math.floor(p * side) + start, 0, size),
    clip(Math.ceil((p + 1) * side) + start, 0, size),
  ]);
}

const OPERATORS = { roi_pool: roiPool, roi_warp: roiWarp, roi_align: roiAlign };

// The gradient with respect to the features [H][W], given that of the output [P][P].
function backward(pooled, features, gradOut) {
  const gradient = features.map((row) => row.map(() => 0));
  gradOut.forEach((row, p) =>
    row.forEach((g, q) =>
      pooled.weights(p, q).forEach((weights, i) =>
        weights.forEach((weight, j) => {
          gradient[i][j] += weight * g;
        }),
      ),
    ),
  );
  return gradient;
}
