// Axes of the chart: limits, ticks and numbers.

const LOG_FROM = 6; // a cost that spans more than this factor is drawn on a logarithmic axis
const LEAST_ROOM = { task: 2e-4, cost: 0.1 }; // values that hardly differ are not torn apart

/**
 * Limits around most values, so that one collapsed run does not flatten the others: those further
 * from the middle half than four times its width are left out, unless all are asked for. Of costs
 * none is left out.
 */
function limits(axis, values, ends, all) {
  const sorted = values.toSorted((a, b) => a - b);
  const leastRoom = axis.cost ? LEAST_ROOM.cost * sorted.at(-1) : LEAST_ROOM.task;
  const quarter = sorted[Math.floor(sorted.length / 4)];
  const threeQuarters = sorted[Math.floor((3 * sorted.length) / 4)];
  const reach = all || axis.cost ? Infinity : 4 * Math.max(threeQuarters - quarter, 1e-4);
  const kept = sorted.filter((value) => value >= quarter - reach && value <= threeQuarters + reach);
  const [least, most] = [kept[0], kept.at(-1)];

  // The end of an interval may lengthen the axis by 60 % on either side.
  const room = Math.max(most - least, leastRoom);
  const low = Math.min(least, ...ends.map((end) => Math.max(end, least - 0.6 * room)));
  const high = Math.max(most, ...ends.map((end) => Math.min(end, most + 0.6 * room)));
  const margin = 0.07 * Math.max(high - low, leastRoom);
  return [low - margin, high + margin];
}

/** A scale from values to pixels with its ticks; `flip` where lower values come last. */
function makeScale(axis, [low, high], [from, to], flip, most) {
  const isLog = axis.cost && low > 0 && high / low > LOG_FROM;
  const bend = isLog ? Math.log10 : (value) => value;
  const [first, last] = flip ? [bend(high), bend(low)] : [bend(low), bend(high)];
  const scale = (value) => from + ((bend(value) - first) / (last - first)) * (to - from);
  scale.low = low;
  scale.high = high;
  scale.holds = (value) => value >= low && value <= high;
  scale.ticks = isLog ? logTicks(low, high) : niceTicks(low, high, most);
  return scale;
}

/** About `most` round numbers between two. */
function niceTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let at = Math.ceil(low / step); at * step <= high; at += 1) ticks.push(at * step);
  return ticks.length < 2 && most < 12 ? niceTicks(low, high, most + 1) : ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    ticks.push(...[1, 2, 5].map((factor) => factor * power));
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

/** Numbers of ticks with as many digits as tell them apart. */
function tickTexts(ticks) {
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : Math.abs(ticks[0]) / 100;
  if (Math.max(...ticks) >= 10000) return ticks.map(shortNumber);
  const exact = (digits) => ticks.every((tick) => Math.abs(tick - tick.toFixed(digits)) < step / 100);
  const digits = [0, 1, 2, 3, 4, 5].find(exact) ?? 6;
  return ticks.map((tick) => withMinus(tick.toFixed(digits)));
}

/** 12 000 as 12k, 3 400 000 as 3.4M. */
function shortNumber(value) {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))}${letter}`;
  }
  return withMinus(String(Number(value.toPrecision(3))));
}

function withMinus(text) {
  return text.replace("-", "−");
}

/** A value of an axis in words. */
function say(axis, [mean, low, high]) {
  if (axis.cost) return mean === null ? "NA" : shortNumber(mean);
  if (mean === null) return "NA";
  const half = low === null ? "" : ` ± ${((high - low) / 2).toFixed(axis.decimals)}`;
  return withMinus(mean.toFixed(axis.decimals)) + half;
}
