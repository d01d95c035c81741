// Curves over the steps of training, with a cursor that all of them share.

/** The place of a step on a logarithmic axis from 0. */
function alongSteps(step) {
  return Math.log1p(step);
}

/**
 * Curves over the steps [S]. `series`: {name, values [S], strong (a class), label}; strong curves are in front and have their
 * name at the end. `levels`: [name, y]. `marks`: steps with a tick. The picture's `mark(i)` moves the cursor to step i.
 */
function timeline(root, { title, steps, series, levels = [], marks = [], height = 150, low = null }) {
  const width = Math.max(220, Math.min(root.clientWidth || 400, 640));
  const [left, top, bottom] = [36, 8, 22];
  const named = series.filter(({ strong, label }) => strong && label);
  const right = levels.length || named.length ? 92 : 12;
  const values = series.flatMap((one) => one.values).filter((x) => x !== null);
  let [y0, y1] = range([...values, ...levels.map(([, y]) => y), ...(low === null ? [] : [low])]);
  [y0, y1] = [y0 - 0.05 * (y1 - y0 || 1), y1 + 0.05 * (y1 - y0 || 1)];
  const end = alongSteps(steps.at(-1)) || 1;
  const px = (step) => left + (alongSteps(step) / end) * (width - left - right);
  const py = (y) => top + ((y1 - y) / (y1 - y0)) * (height - top - bottom);
  const picture = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": title,
    class: "timeline",
  });
  const yTicks = ticks(y0, y1, height < 120 ? 2 : 3);
  for (const y of yTicks) {
    picture.append(
      svg("line", { class: "axis", x1: left, x2: width - right, y1: py(y), y2: py(y) }),
      svg("text", { x: left - 5, y: py(y) + 4, "text-anchor": "end" }, tickText(y, yTicks)),
    );
  }
  const stepTicks = [0, 1, 10, 100, 1000, 10000, 100000, 1e6].filter((x) => x < steps.at(-1) / 2.5);
  for (const x of [...stepTicks, steps.at(-1)]) {
    const anchor = x === steps.at(-1) ? "end" : "middle";
    picture.append(svg("text", { x: px(x), y: height - 6, "text-anchor": anchor }, x < 1e4 ? format(x) : `${x / 1e3}k`));
  }
  picture.append(
    ...marks.map((step) => svg("line", { class: "tick", x1: px(step), x2: px(step), y1: height - bottom - 5, y2: height - bottom })),
  );
  const ends = [];
  for (const [name, y] of levels) {
    picture.append(svg("line", { class: "base", x1: left, x2: width - right, y1: py(y), y2: py(y) }));
    ends.push([py(y), `${name} ${fixed(y)}`, ""]);
  }
  for (const one of [...series].sort((a, b) => Boolean(a.strong) - Boolean(b.strong))) {
    let pen = "M";
    const path = steps.map((step, i) => {
      if (one.values[i] === null) {
        pen = "M";
        return "";
      }
      const point = `${pen}${px(step).toFixed(1)} ${py(one.values[i]).toFixed(1)}`;
      pen = "L";
      return point;
    });
    picture.append(svg("path", { class: `line ${one.strong ?? "faint"}`, d: path.join("") }));
    if (one.strong && one.label && one.values.at(-1) !== null) ends.push([py(one.values.at(-1)), one.label, one.strong]);
  }
  ends.sort((a, b) => a[0] - b[0]);
  ends.forEach((one, i) => {
    if (i) one[0] = Math.max(one[0], ends[i - 1][0] + 13);
  });
  const over = Math.max(0, (ends.at(-1)?.[0] ?? 0) - (height - bottom));
  for (const [y, name, kind] of ends) {
    picture.append(svg("text", { class: `end ${kind}`, x: width - right + 5, y: y - over + 4 }, name));
  }
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom });
  const dots = series.filter((one) => one.strong).map((one) => [one, svg("circle", { class: `dot ${one.strong}`, r: 3.5 })]);
  picture.append(cursor, ...dots.map(([, dot]) => dot));
  picture.mark = (i) => {
    cursor.setAttribute("x1", px(steps[i]));
    cursor.setAttribute("x2", px(steps[i]));
    for (const [one, dot] of dots) {
      dot.setAttribute("visibility", one.values[i] === null ? "hidden" : "visible");
      dot.setAttribute("cx", px(steps[i]));
      dot.setAttribute("cy", py(one.values[i] ?? 0));
    }
  };
  return picture;
}
