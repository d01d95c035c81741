// Line and scatter plots in SVG. A plot is as wide as its container, so text keeps its size on a small screen.

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step / 1e6; x += step)
    found.push(Math.abs(x) < step / 1e6 ? 0 : x);
  return found;
}

/** The smallest and largest of the finite numbers. */
function range(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const x of values) {
    if (x === null || !Number.isFinite(x)) continue;
    low = Math.min(low, x);
    high = Math.max(high, x);
  }
  return low <= high ? [low, high] : [0, 1];
}

/** A number for an axis, with as few digits as the spacing allows. */
function tickText(x, all) {
  if (Math.abs(x) >= 10000) return `${format(x / 1000, 0)}k`;
  const gap = all.length > 1 ? Math.abs(all[1] - all[0]) : 1;
  return format(x, Math.max(0, Math.min(6, Math.ceil(-Math.log10(gap) - 1e-9))));
}

/**
 * Curves over a common axis. `series`: {name, points: [[x, y], ...], second}. `levels`: [name, y], horizontal lines for
 * comparison. `log`: a logarithmic x axis.
 */
function lines(root, { title, series, levels = [], xName, yName, log = false, height = 240 }) {
  const width = Math.max(260, Math.min(root.clientWidth || 600, 760));
  const all = series.flatMap((one) => one.points);
  const along = (x) => (log ? Math.log10(x + 1) : x);
  const [x0, x1] = range(all.map(([x]) => along(x)));
  let [y0, y1] = range([...all.map(([, y]) => y), ...levels.map(([, y]) => y)]);
  [y0, y1] = [y0 - 0.04 * (y1 - y0 || 1), y1 + 0.04 * (y1 - y0 || 1)];
  const [left, right, top, bottom] = [44, levels.length ? 88 : 26, 10, 38];
  const px = (x) => left + ((along(x) - x0) / (x1 - x0 || 1)) * (width - left - right);
  const py = (y) => top + ((y1 - y) / (y1 - y0)) * (height - top - bottom);
  const picture = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": title,
  });
  const yTicks = ticks(y0, y1, 5);
  for (const y of yTicks) {
    picture.append(
      svg("line", { class: "axis", x1: left, x2: width - right, y1: py(y), y2: py(y) }),
      svg("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, tickText(y, yTicks)),
    );
  }
  const last = Math.max(...all.map(([x]) => x));
  const xTicks = log ? logTicks(last) : ticks(x0, x1, width < 420 ? 3 : 6);
  for (const x of xTicks) {
    picture.append(
      svg(
        "text",
        { x: px(x), y: height - bottom + 16, "text-anchor": "middle" },
        tickText(x, log ? [0, 1] : xTicks),
      ),
    );
  }
  picture.append(
    svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xName),
    svg(
      "text",
      {
        x: 0,
        y: 0,
        "text-anchor": "middle",
        transform: `translate(11 ${(top + height - bottom) / 2}) rotate(-90)`,
      },
      yName,
    ),
  );
  for (const [y, name] of spread(levels, py)) {
    const level = levels.find(([n]) => n === name)[1];
    picture.append(
      svg("line", { class: "base", x1: left, x2: width - right, y1: py(level), y2: py(level) }),
      svg("text", { x: width - right + 6, y: y + 4 }, `${name} ${format(level, 2)}`),
    );
  }
  for (const one of series) {
    const path = one.points
      .map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`)
      .join("");
    picture.append(svg("path", { class: one.second ? "line second" : "line", d: path }));
    if (one.points.length < 30) {
      for (const [x, y] of one.points)
        picture.append(
          svg("circle", { class: one.second ? "dot second" : "dot", cx: px(x), cy: py(y), r: 2.5 }),
        );
    }
  }
  return picture;
}

function logTicks(last) {
  const found = [0];
  for (let x = 1; x <= last; x *= 10) found.push(x);
  if (last > 2 * found[found.length - 1]) found.push(last);
  return found;
}

/** The positions of the levels' names, moved apart where they would overlap. */
function spread(levels, py) {
  const at = levels.map(([name, y]) => [py(y), name]).sort((a, b) => a[0] - b[0]);
  for (let i = 1; i < at.length; i++) at[i][0] = Math.max(at[i][0], at[i - 1][0] + 13);
  return at;
}

/**
 * Named points. `points`: {x, y, name (a token)}; `frame`: [x0, x1, y0, y1], which two plots can share. A name is drawn
 * only if it overlaps no other. The picture's `mark(i)` highlights one point without redrawing.
 */
function scatter(root, { title, points, frame, choose }) {
  const width = Math.max(240, Math.min(root.clientWidth || 400, 460));
  const pad = 18;
  const [x0, x1, y0, y1] = frame;
  const px = (x) => pad + ((x - x0) / (x1 - x0 || 1)) * (width - 2 * pad);
  const py = (y) => pad + ((y1 - y) / (y1 - y0 || 1)) * (width - 2 * pad);
  const picture = svg("svg", {
    width,
    height: width,
    viewBox: `0 0 ${width} ${width}`,
    role: "img",
    "aria-label": title,
  });
  picture.append(svg("rect", { class: "axis", x: 0.5, y: 0.5, width: width - 1, height: width - 1 }));
  if (x0 < 0 && x1 > 0)
    picture.append(svg("line", { class: "axis", x1: px(0), x2: px(0), y1: 0, y2: width }));
  if (y0 < 0 && y1 > 0)
    picture.append(svg("line", { class: "axis", x1: 0, x2: width, y1: py(0), y2: py(0) }));
  const taken = [];
  const label = ({ x, y, name }) => {
    const [cx, cy, letters] = [px(x), py(y), [...word(name)]];
    const shown = letters.length > 16 ? `${letters.slice(0, 15).join("")}…` : letters.join("");
    const long = 6 + 7.4 * Math.min(letters.length, 16);
    const left = cx + 4 + long > width; // no room to the right of the point
    const box = [left ? cx - 4 - long : cx + 4, cy - 7, left ? cx - 4 : cx + 4 + long, cy + 7];
    const text = svg(
      "text",
      { class: "name", x: left ? cx - 6 : cx + 6, y: cy + 4, "text-anchor": left ? "end" : "start" },
      shown,
    );
    return [box, text];
  };
  points.forEach((point, i) => {
    const dot = svg("circle", { class: "dot faint", cx: px(point.x), cy: py(point.y), r: 2.5 });
    dot.addEventListener("click", () => choose(i));
    picture.append(dot);
  });
  for (const point of points) {
    const [box, text] = label(point);
    if (taken.some((b) => b[2] >= box[0] && b[0] <= box[2] && b[3] >= box[1] && b[1] <= box[3])) continue;
    taken.push(box);
    picture.append(text);
  }
  const marked = svg("g", { class: "marked" });
  picture.append(marked);
  picture.mark = (i) => {
    if (i < 0) {
      marked.replaceChildren();
      return;
    }
    const [box, text] = label(points[i]);
    const back = svg("rect", { class: "back", x: box[0], y: box[1] - 1, width: box[2] - box[0], height: 16 });
    marked.replaceChildren(
      back,
      svg("circle", { class: "dot second", cx: px(points[i].x), cy: py(points[i].y), r: 5 }),
      text,
    );
  };
  return picture;
}
