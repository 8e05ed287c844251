// Colours, numbers and ticks of charts.

// Resolves a colour of the stylesheet in the current theme: a canvas does not support CSS variables.
const colour = (name) => {
  const probe = part("announcement");
  probe.style.color = `var(--${name})`;
  const resolved = getComputedStyle(probe).color;
  probe.style.color = "";
  return resolved;
};

// Format a score for an axis of the length span; share: as a percentage.
const scoreText = (value, span, share) => (share
  ? `${(100 * value).toFixed(span < 0.002 ? 3 : span < 0.02 ? 2 : span < 0.1 ? 1 : 0)} %` : Number(value.toPrecision(4)).toString());
const sizeText = (value) => {
  for (const [unit, factor] of [["MiB", 1 << 20], ["KiB", 1024]]) {
    if (Math.abs(value) >= factor) return `${Number((value / factor).toPrecision(3))} ${unit}`;
  }
  return `${Math.round(value)} B`;
};
const timeText = (value) => (Math.abs(value) < 1 ? `${Number((1000 * value).toPrecision(3))} µs` : `${Number(value.toPrecision(3))} ms`);
const shorten = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);

const steps = [1, 2, 5];
const even = (low, high, unit) => {
  const rough = (high - low) / unit / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = unit * power * (steps.find((one) => one * power >= rough) ?? 10);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) }, (_, at) => (first + at) * step);
};
const doubling = (low, high) => {
  const first = Math.ceil(Math.log2(low));
  return Array.from({ length: Math.floor(Math.log2(high)) - first + 1 }, (_, at) => 2 ** (first + at));
};
const decades = (low, high) => {
  const first = Math.floor(Math.log10(low));
  return Array.from({ length: Math.floor(Math.log10(high)) - first + 1 }, (_, at) => steps.map((step) => step * 10 ** (first + at)))
    .flat().filter((at) => at >= low && at <= high);
};
const ticks = (low, high, logarithmic, bytes) => {
  if (!logarithmic) return even(low, high, !bytes || high < 1024 ? 1 : high < 1 << 20 ? 1024 : 1 << 20);
  const values = bytes ? doubling(low, high) : decades(low, high);
  const every = Math.ceil(values.length / 7);
  return values.filter((_, at) => at % every === 0);
};
