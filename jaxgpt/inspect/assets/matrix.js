// Matrices as pictures: one canvas pixel per number, enlarged without smoothing.

/** Paint values [rows][columns] on a canvas. `colour(value)` returns [r, g, b], or null for no colour. */
function pixels(canvas, values, colour) {
  const [height, width] = [values.length, values[0]?.length ?? 0];
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const rgb = colour(values[y][x]);
      if (rgb) image.data.set([...rgb, 255], 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
}

/** A function from numbers to colours. It uses a table of 256 colours, because computing each one is slow. */
function colours(ramp, low, high) {
  const lut = Array.from({ length: 256 }, (_, i) => shade(ramp, i / 255));
  const scale = 255 / (high - low || 1);
  return (x) =>
    x === null || !Number.isFinite(x) ? null : lut[Math.max(0, Math.min(255, Math.round((x - low) * scale)))];
}

/**
 * A matrix whose cells can be read with the pointer or the arrow keys. `say(y, x)` returns the text of a cell;
 * `choose(y, x)` is called on a click or an arrow key. `axes`: the names of the rows and of the columns.
 */
function matrix({ title, values, colour, chosen, say, choose, readout, axes }) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  pixels(canvas, values, colour);
  const frame = el(
    "div",
    {
      class: "matrix",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "matrix",
      "aria-label": `${title} Arrow keys move from cell to cell.`,
    },
    canvas,
  );
  const outline = el("span", { class: "outline", "aria-hidden": "true" });
  frame.append(outline);
  const [height, width] = [values.length, values[0]?.length ?? 0];
  const names = axes ?? ["row", "column"];
  const drawn = el(
    "div",
    { class: "axes" },
    el("span", { class: "down", "aria-hidden": "true" }, `${names[0]} 0 to ${height - 1} →`),
    frame,
    el("span", { class: "across", "aria-hidden": "true" }, `${names[1]} 0 to ${width - 1} →`),
  );
  const show = (y, x) => {
    readout.textContent = say(y, x);
  };
  const place = (y, x) => {
    outline.style.left = `${(100 * x) / width}%`;
    outline.style.top = `${(100 * y) / height}%`;
    outline.style.width = `${100 / width}%`;
    outline.style.height = `${100 / height}%`;
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    return [Math.max(0, Math.min(height - 1, y)), Math.max(0, Math.min(width - 1, x))];
  };
  canvas.addEventListener("pointermove", (event) => show(...under(event)));
  canvas.addEventListener("pointerleave", () => show(...chosen()));
  canvas.addEventListener("click", (event) => choose(...under(event)));
  frame.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const [y, x] = chosen();
    const [toY, toX] = [y + move[0], x + move[1]];
    if (toY >= 0 && toY < height && toX >= 0 && toX < width) choose(toY, toX);
  });
  drawn.mark = () => {
    place(...chosen());
    show(...chosen());
  };
  drawn.mark();
  return drawn;
}
