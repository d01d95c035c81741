// Changes of the model: heads, MLPs and neurons switched off or scaled, and directions between words.

const editForm = document.getElementById("edit-form");
const editList = document.getElementById("edits");
let edits = []; // as the server takes them, see inspect/steering.py

/** The edits that texts are written with. */
function editsForWriting() {
  return document.getElementById("edited").checked ? edits : [];
}

/** An edit in words. */
function editName({ site, layer, at, scale, from, to }) {
  if (site === "stream")
    return `after layer ${layer}: ${format(scale, 2)} × (‘${visible(to)}’ − ‘${visible(from)}’) added`;
  const what = { heads: `head ${layer}.${at}`, mlp: `MLP of layer ${layer}`, neurons: `neuron ${at} of layer ${layer}` };
  return scale === 0 ? `${what[site]} off` : `${what[site]} × ${format(scale, 2)}`;
}

function drawEdits() {
  editList.replaceChildren(
    ...edits.map((one, i) =>
      el(
        "li",
        {},
        editName(one),
        " ",
        el(
          "button",
          {
            type: "button",
            class: "link",
            "aria-label": `Undo: ${editName(one)}`,
            onclick: () => changeEdits(edits.filter((_, j) => j !== i)),
          },
          "undo",
        ),
      ),
    ),
  );
  document.getElementById("edited").closest("label").hidden = !edits.length;
}

/** Take other edits, and show what they change. */
function changeEdits(others) {
  edits = others;
  keepFocus(editList, drawEdits, () => editList.querySelector("button") ?? editForm.querySelector("button"));
  save();
  if (current()?.tokens.length) showChoices(current().chosen ?? current().tokens.length);
}

/** Show the fields that the chosen kind of edit has. */
function showFields() {
  const site = editForm.elements.site.value;
  for (const label of editForm.querySelectorAll("[data-for]"))
    label.hidden = !label.dataset.for.split(" ").includes(site);
  editForm.elements.at.max = (about.sites[site] ?? 1) - 1;
  editForm.elements.scale.value = site === "stream" ? 2 : 0;
}

async function addEdit(event) {
  event.preventDefault();
  const fields = editForm.elements;
  const site = fields.site.value;
  const one = { site, layer: Number(fields.layer.value), scale: Number(fields.scale.value) };
  if (site === "heads" || site === "neurons") one.at = Number(fields.at.value);
  if (site === "stream") [one.from, one.to] = [fields.from.value, fields.to.value];
  const line = document.getElementById("edit-status");
  try {
    // The server says what this model does not have.
    await ask("api/next", { prompt: about.defaults.prompt, edits: [...edits, one] });
    line.textContent = "";
    changeEdits([...edits, one]);
  } catch (error) {
    line.textContent = error.message;
  }
}

editForm.elements.site.addEventListener("change", showFields);
editForm.addEventListener("submit", addEdit);
document.getElementById("edited").addEventListener("change", () => save());
