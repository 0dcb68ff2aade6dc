// Draws what the server computed; see api/dashboard/figures.py for the data.
import * as echarts from "../vendor/echarts-6.1.0.esm.min.js";
import { go } from "./pages.js";

const drawn = new Set();

export function enhance(part, signal) {
  for (const place of part.querySelectorAll("[data-chart]")) draw(place, signal);
}

document.addEventListener("theme", () => { for (const { chart, place } of drawn) option(chart, place); });

function draw(place, signal) {
  const chart = echarts.init(place, null, { renderer: "svg" });
  const entry = { chart, place };
  const resize = new ResizeObserver(() => chart.resize());
  drawn.add(entry);
  option(chart, place);
  resize.observe(place);
  chart.on("click", ({ data }) => { if (data?.digest) go(`/shape/${data.digest}`, { focus: "#main" }); });
  signal.addEventListener("abort", () => {
    resize.disconnect();
    chart.dispose();
    drawn.delete(entry);
  });
}

function option(chart, place) {
  const data = JSON.parse(place.dataset.values);
  const colours = palette();
  chart.setOption({ ...common(colours), ...KINDS[place.dataset.chart](data, colours) }, { notMerge: true });
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    of: (number) => value(`c${number}`), ink: value("ink"), faint: value("faint"), line: value("line"),
    panel: value("panel"), accent: value("accent"), track: value("track"), faster: value("faster"), sans: value("sans"),
  };
}

function common(c) {
  return {
    animation: false,
    textStyle: { fontFamily: c.sans, color: c.faint },
    tooltip: {
      renderMode: "richText", confine: true, backgroundColor: c.panel, borderColor: c.line,
      textStyle: { color: c.ink, fontSize: 12 },
    },
  };
}

const axis = (c, more = {}) => ({
  axisLine: { lineStyle: { color: c.line } }, axisTick: { show: false },
  axisLabel: { color: c.faint, fontSize: 11, hideOverlap: true, ...more.axisLabel },
  splitLine: { lineStyle: { color: c.line } }, nameTextStyle: { color: c.faint },
  ...Object.fromEntries(Object.entries(more).filter(([name]) => name !== "axisLabel")),
});

export function duration(seconds) {
  // As api/units.py writes it.
  const digits = (value) => (value >= 99.95 ? value.toFixed(0) : value >= 9.995 ? value.toFixed(1) : value.toFixed(2));
  for (const [size, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) {
    if (seconds >= size) return `${digits(seconds / size)} ${unit}`;
  }
  return `${digits(seconds * 1e9)} ns`;
}

function brief(seconds) {
  // For the ends of an axis.
  for (const [size, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) {
    if (seconds >= size) return `${+(seconds / size).toPrecision(2)} ${unit}`;
  }
  return `${+(seconds * 1e9).toPrecision(2)} ns`;
}

function timeAxis(c, seconds) {
  // Logarithmic, in one unit with ticks at its powers of two: 1 ms, 2 ms, 4 ms; of ten where they would be many. `of`
  // puts a time on it.
  const least = Math.min(...seconds), most = Math.max(...seconds);
  const base = most / least > 100 ? 10 : 2;
  const exponent = (value) => Math.log(value) / Math.log(base);
  const [size, unit] = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]].find(([size]) => least >= 0.25 * size) ?? [1e-9, "ns"];
  return {
    of: (time) => time / size,
    seconds: (value) => value * size,
    axis: axis(c, {
      type: "log", logBase: base,
      min: base ** Math.floor(exponent(least / size / 1.08)), max: base ** Math.ceil(exponent(most / size * 1.08)),
      axisLabel: { formatter: (value) => (base === 2 ? `${+value.toPrecision(3)} ${unit}` : brief(value * size)) },
    }),
  };
}

const lines = (text, width = 48) => text.replace(new RegExp(`(.{1,${width}})(, |$)`, "g"), "$1\n").trim();
const SYMBOLS = ["circle", "rect", "triangle", "diamond", "roundRect", "pin", "arrow"];

function range(values, share = 1.15) {
  return { min: Math.min(...values) / share, max: Math.max(...values) * share };
}

const KINDS = {
  strategies(data, c) {
    const names = data.strategies.map((item) => item.name);
    const all = data.points.map((point) => point.time).concat(data.default ? [data.default.time] : []);
    const time = timeAxis(c, all);
    const series = data.strategies.map(({ name, colour }) => ({
      type: "scatter", name, symbolSize: 9, itemStyle: { color: c.of(colour), opacity: 0.75 },
      data: data.points.filter((point) => point.strategy === name && !point.won)
        .map((point) => ({ value: [time.of(point.time), name], params: point.params })),
    }));
    const won = data.points.filter((point) => point.won);
    series.push({
      type: "scatter", name: "winner", symbol: "diamond", symbolSize: 16, z: 5,
      itemStyle: { color: c.ink, borderColor: c.panel, borderWidth: 1.5 },
      data: won.map((point) => ({ value: [time.of(point.time), point.strategy], params: `${point.params}\nthe winner` })),
    });
    if (data.default) {
      series[0].markLine = {
        silent: true, symbol: "none", lineStyle: { color: c.faint, type: "dashed" },
        label: { formatter: data.default.name, color: c.faint, fontSize: 11, position: "end" }, data: [{ xAxis: time.of(data.default.time) }],
      };
    }
    return {
      grid: { left: 8, right: 24, top: 24, bottom: 8, containLabel: true },
      xAxis: time.axis,
      yAxis: axis(c, { type: "category", data: names, splitLine: { show: true, lineStyle: { color: c.line } }, axisLabel: { color: c.ink, fontSize: 12 } }),
      tooltip: { ...common(c).tooltip, formatter: ({ value, data: point }) => `${value[1]}: ${duration(time.seconds(value[0]))}\n${lines(point.params)}` },
      series,
    };
  },

  progress(data, c) {
    const ratios = data.points.map((point) => point.ratio);
    const series = data.strategies.map(({ name, colour }, at) => ({
      type: "scatter", name, symbol: SYMBOLS[at % SYMBOLS.length], symbolSize: 8, itemStyle: { color: c.of(colour), opacity: 0.85 },
      data: data.points.filter((point) => point.strategy === name).map((point) => ({ value: [point.number, point.ratio], params: point.params })),
    }));
    series.push({
      type: "line", name: "best so far", step: "end", symbol: "none", silent: true, z: 1,
      lineStyle: { color: c.ink, width: 1.5 }, itemStyle: { color: c.ink }, data: data.best,
    });
    return {
      grid: { left: 8, right: 16, top: 12, bottom: 52, containLabel: true },
      legend: { bottom: 0, type: "scroll", itemHeight: 9, itemWidth: 12, textStyle: { color: c.faint, fontSize: 11 }, pageTextStyle: { color: c.faint }, pageIconColor: c.faint },
      xAxis: axis(c, { type: "value", min: 1, max: Math.max(2, data.points.length), minInterval: 1, splitLine: { show: false } }),
      yAxis: axis(c, {
        type: "log", logBase: 2, min: 2 ** Math.floor(Math.log2(Math.min(...ratios) / 1.05)),
        max: 2 ** Math.ceil(Math.log2(Math.max(...ratios) * 1.05)), axisLabel: { formatter: (value) => `${+value.toPrecision(3)}` },
      }),
      tooltip: { ...common(c).tooltip, formatter: ({ value, seriesName, data: point }) => `${value[0]}. ${seriesName}: ${value[1].toFixed(2)} of direct\n${lines(point.params ?? "")}` },
      series,
    };
  },

  parameters(data, c) {
    const times = data.rows.map((row) => row.at(-1));
    const label = { color: c.faint, fontSize: 10 };
    const named = { nameTextStyle: { color: c.ink, fontSize: 11 }, axisLine: { lineStyle: { color: c.faint } }, axisTick: { show: false } };
    const [fastest, slowest] = [Math.min(...times), Math.max(...times)];
    const share = (time) => (slowest > fastest ? Math.log(time / fastest) / Math.log(slowest / fastest) : 0);
    return {
      parallel: { left: 40, right: 56, top: 36, bottom: 16 },
      parallelAxis: [
        ...data.axes.map(({ name, values }, dim) => ({ dim, name, type: "category", data: values, axisLabel: label, nameLocation: "end", ...named })),
        { dim: data.axes.length, name: "time", type: "log", inverse: true, ...range(times, 1.02), axisLabel: { ...label, formatter: brief }, nameLocation: "start", ...named },
      ],
      series: [{
        type: "parallel", smooth: 0.2,
        data: data.rows.map((row) => ({
          value: row, lineStyle: { color: c.of(data.colour), width: share(row.at(-1)) < 0.01 ? 3 : 1.5, opacity: 1 - 0.85 * share(row.at(-1)) },
        })),
      }],
      tooltip: { show: false },
    };
  },

  importance(data, c) {
    return {
      grid: { left: 8, right: 44, top: 4, bottom: 4, containLabel: true },
      xAxis: { show: false, min: 0 },
      yAxis: axis(c, { type: "category", data: data.shares.map(([name]) => name), axisLine: { show: false }, axisLabel: { color: c.ink, fontSize: 12 } }),
      series: [{
        type: "bar", barMaxWidth: 16, itemStyle: { color: c.of(data.colour), borderRadius: 3 }, data: data.shares.map(([, share]) => share),
        label: { show: true, position: "right", color: c.faint, formatter: ({ value }) => `${(100 * value).toFixed(0)}%` },
      }],
      tooltip: { show: false },
    };
  },

  kernels(data, c) {
    const total = data.kernels.reduce((sum, kernel) => sum + kernel.time, 0);
    return {
      grid: { left: 0, right: 0, top: 4, bottom: 22 },
      xAxis: axis(c, { type: "value", max: total, axisLabel: { formatter: (value) => (value ? brief(value) : "0"), showMaxLabel: false }, splitLine: { show: false } }),
      yAxis: { type: "category", data: [""], show: false },
      series: data.kernels.map((kernel, at) => ({
        type: "bar", stack: "all", barWidth: 34, name: kernel.name, data: [kernel.time],
        itemStyle: { color: c.of(data.colour), opacity: at % 2 ? 0.72 : 1, borderColor: c.panel, borderWidth: 2, borderRadius: 4 },
        label: { show: kernel.time / total > 0.08, formatter: `${at + 1}`, color: "#fff", fontWeight: 600 },
      })),
      tooltip: { ...common(c).tooltip, formatter: ({ seriesName, value }) => `${seriesName}\n${duration(value)}, ${(100 * value / total).toFixed(0)}%` },
    };
  },

  pairs(data, c) {
    const names = data.rows.map((row) => row.shape).reverse();
    const rows = [...data.rows].reverse();
    const time = timeAxis(c, rows.flatMap((row) => row.times));
    const side = (at, symbol) => ({
      type: "scatter", name: data.names[at], symbol, symbolSize: 12, itemStyle: { color: at ? c.of(7) : c.of(2), borderColor: c.panel },
      data: rows.map((row, y) => ({ value: [time.of(row.times[at]), y], strategy: row.strategies[at] })),
    });
    return {
      grid: { left: 8, right: 28, top: 8, bottom: 44, containLabel: true },
      legend: { bottom: 0, textStyle: { color: c.faint, fontSize: 11 }, itemHeight: 10 },
      media: [ // names of devices are long: where they do not fit, they stand below each other and break
        { option: { grid: { bottom: 44 }, legend: { left: "center", orient: "horizontal", textStyle: { width: null } } } },
        { query: { maxWidth: 480 }, option: { grid: { bottom: 88 }, legend: { left: 0, orient: "vertical", textStyle: { width: 260, overflow: "break", lineHeight: 14 } } } },
      ],
      xAxis: time.axis,
      yAxis: axis(c, { type: "category", data: names, axisLabel: { color: c.ink, fontSize: 11, width: 190, overflow: "truncate" } }),
      series: [
        side(0, "circle"), side(1, "rect"),
        ...rows.map((row, y) => ({
          type: "line", silent: true, symbol: "none", z: 1, lineStyle: { color: c.line, width: 3 }, data: row.times.map((taken) => [time.of(taken), y]),
        })),
      ],
      tooltip: { ...common(c).tooltip, formatter: ({ value, seriesName, data: point }) => `${names[value[1]]}\n${seriesName}\n${point.strategy}: ${duration(time.seconds(value[0]))}` },
    };
  },
};
