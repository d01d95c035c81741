"""When does a model learn to copy from its context, and which heads do it?

python -m experiments.induction [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import jaxgpt
from experiments import claim, comparing
from experiments.claim import Amendment, Effect, Outdated, Result, Setting
from jaxgpt.inspect import heads
from jaxgpt.inspect.interventions import Edit, edited_logits
from jaxgpt.runs import records
from jaxgpt.runs.load import Run
from jaxgpt.training.steps import token_losses

NOTE = "Heads that look for an earlier occurrence of the current token and copy what followed it form at one point in training, and there in-context learning sets in; one layer cannot have them (Olsson et al. 2022)."
CLAIM = "A model of two layers learns to copy from its context when an induction head forms; a model of one layer does not learn it."
PREDICTION = "Two layers: the loss on a repetition falls in the same quarter of an octave of steps as the induction score rises, and rises again without the head. One layer: neither."
REFUTED_BY = "A fall of the loss without a head, or at another time; a loss that stays low without the head; or one layer that copies as well."
DESIGN = (
    "Models of one and of two layers are trained on lines of 5 to 12 random letters that are written four times: only the repetitions "
    "can be predicted, by copying, and as lengths differ not from a fixed distance. The training is that of configs/char_fast.py (Muon, query-key norm). The parameters of every few steps are kept. On new "
    "lines of 6, 8, 10 and 12 letters, written twice: the loss on the second half, and for each head the weight on the "
    "letter after the previous occurrence (the induction score of Olsson et al.). When: the first step at which the largest score is halfway between its "
    "lowest and its highest value, and the same for the loss, in powers of two. Ablation: the loss on the second half without the "
    "head with the largest score, minus that without the head of the same layer with the smallest."
)
MARGINS = {"loss": 0.1, "time": 0.05}
LIMITS = "A text made for copying. In natural text, copying is a small part of the loss and forms later."
AMENDMENTS = (
    Amendment(
        "2026-11-26 (fd8dd95)", "Lines have different lengths; before, all had 16 letters.",
        "At one distance a single layer can copy by position alone, and did: 0.124 nats a letter, with two layers 0.198.", "does not hold",
    ),
    Amendment(
        "2026-11-26", "The training of configs/char_fast.py on twice as many tokens a step; lines of 5 to 12 letters written four times; before, AdamW on lines of 5 to 16 "
        "letters written twice.",
        "After 1,000 steps neither model copied (2.4 nats on a repetition, where the set of letters of a line is known): a claim about when copying starts needs models "
        "that start it. With AdamW at the same rate, lines written four times gave 2.13 nats after 1,000 steps, and no head.", "does not hold",
    ),
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz012345"
SHORTEST, LONGEST = 5, 12  # letters before the repetition
TIMES = 4  # a line has its letters
TESTED = (6, 8, 10, 12)
# As configs/char_fast.py.
RECIPE: dict[str, Any] = {
    "model__init": "fan_in", "model__tie_embeddings": False, "model__qk_norm": True, "model__attention_scale": 0.3, "model__use_bias": False,
    "model__norm": "rmsnorm_plain", "model__rotary_base": 1_000.0, "optim__name": "muon", "optim__learning_rate": 2e-2, "optim__muon_learning_rate": 3e-2,
    "optim__muon_momentum": 0.9, "optim__muon_iterations": 4, "optim__b1": 0.8, "optim__b2": 0.95, "optim__weight_decay": 0.0,
    "optim__grad_clip_norm": 0.0, "optim__schedule": "linear", "optim__warmup_steps": 15, "optim__final_learning_rate_ratio": 0.02,
}  # fmt: skip


def write_text(folder: Path, lines: int) -> Path:
    """A file of lines of random letters that are written TIMES times."""
    path = folder / f"repeated_{TIMES}_{SHORTEST}_{LONGEST}_{lines}.txt"
    if not path.exists():
        records.make_folder(folder)
        rng = np.random.default_rng(0)
        lengths = rng.integers(SHORTEST, LONGEST + 1, size=lines)
        words = ["".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=n)) for n in lengths]
        path.write_text("".join(f"{word * TIMES}\n" for word in words), "utf-8")
    return path


def halfway(steps: list[int], values: list[float]) -> float:
    """The step, interpolated, at which values first come halfway from the first one to the most distant one."""
    values_N = np.asarray(values, float)
    far = values_N[np.abs(values_N - values_N[0]).argmax()]
    if far == values_N[0]:
        return math.nan
    done = (values_N - values_N[0]) / (far - values_N[0])
    i = int(np.argmax(done >= 0.5))
    before, after = steps[i - 1] + 1, steps[i] + 1  # from 1, for logarithms
    part = (0.5 - done[i - 1]) / (done[i] - done[i - 1])
    return 2 ** (math.log2(before) + part * (math.log2(after) - math.log2(before))) - 1


def new_lines(run: Run, count: int) -> list[np.ndarray]:
    """New lines of two halves, as ids: [count, 2 n] for each length n."""
    rng = np.random.default_rng(1)
    ids = np.array([run.tokenizer.encode(letter)[0] for letter in LETTERS], np.int32)
    halves = [ids[rng.integers(len(LETTERS), size=(count, n))] for n in TESTED]
    return [np.concatenate([half, half], axis=1) for half in halves]


def ablation(run: Run, texts: list[np.ndarray], score_H: np.ndarray, layer: int) -> list[float]:
    """The loss on the second half: without the head of the largest score, and without that of the smallest."""
    found = []
    for head in (int(score_H.argmax()), int(score_H.argmin())):
        edits = {("heads", layer): Edit(scale=0.0, at=head)}
        losses = []
        for texts_BT in texts:
            logits = edited_logits(run.model, run.params, texts_BT, edits)
            nats_BT = token_losses(logits[:, :-1], texts_BT[:, 1:])
            losses.append(float(nats_BT[:, texts_BT.shape[1] // 2 :].mean()))
        found.append(float(np.mean(losses)))
    return found


def examine(workdir: Path, steps: list[int], count: int) -> dict[str, Any]:
    """Losses of both halves and the largest induction score by step, and the ablation at the end."""
    curve: dict[str, Any] = {"steps": steps, "first": [], "second": [], "score": []}
    for step in steps:
        run = jaxgpt.load(workdir, step=step)
        texts = new_lines(run, count)
        shown = [heads.measure(run.model, run.params, texts_BT, texts_BT) for texts_BT in texts]
        score_LH = np.mean([found.induction_LH for found in shown], axis=0)
        curve["first"].append(float(np.mean([found.first_loss for found in shown])))
        curve["second"].append(float(np.mean([found.second_loss for found in shown])))
        curve["score"].append(float(score_LH.max()))
    layer = int(score_LH.max(axis=1).argmax())
    curve["without"] = ablation(run, texts, score_LH[layer], layer)
    curve["head"] = [layer, int(score_LH[layer].argmax())]
    return curve


def measure(setting: Setting) -> dict[str, Any]:
    """Curves by the number of layers, one per seed."""
    every, last = setting.pick((2, 4), (10, 400), (50, 4_000))
    text = write_text(setting.folder, setting.pick(300, 20_000, 100_000))
    base = comparing.base(
        setting, **RECIPE, data__path=str(text), data__batch_size=setting.pick(2, 32, 64), model__context_length=setting.pick(2 * LONGEST, 64, 64),
        train__num_steps=last, train__snapshots=f"every:{every}",
    )  # fmt: skip
    variants = {str(layers): {"model.num_layers": layers} for layers in (1, 2)}
    rows = comparing.train(setting, "induction", base, variants)
    steps = list(range(0, last + 1, every))
    return {
        "curves": {
            label: [examine(row.workdir, steps, setting.pick(4, 64, 256)) for row in found]
            for label, found in rows.items()
        },
        "guess": math.log(len(LETTERS)),
        "times": TIMES,
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    if "times" not in measurements:
        raise Outdated("lines that are written four times, and the training of configs/char_fast.py")
    curves, unit = measurements["curves"], "nats a letter"
    second = {label: [curve["second"][-1] for curve in found] for label, found in curves.items()}
    two = curves["2"]
    when = [[halfway(curve["steps"], curve[what]) for what in ("score", "second")] for curve in two]
    apart = [abs(math.log2((head + 1) / (loss + 1))) for head, loss in when]
    without = [curve["without"] for curve in two]
    lost = claim.difference([row[0] for row in without], [row[1] for row in without])
    parts = (
        Effect("loss on the repetition, one layer minus two", claim.difference(second["1"], second["2"]), unit, margin=MARGINS["loss"]),
        Effect("a quarter of an octave minus the distance of the head's step and the loss's", claim.mean([0.25 - x for x in apart]), "octaves", margin=MARGINS["time"]),
        Effect("loss on the repetition without the induction head minus without another head of its layer", lost, unit, margin=MARGINS["loss"]),
    )  # fmt: skip
    copy = claim.worded(
        parts[0], "copy better than one", "do not copy better than one", "may or may not copy better than one"
    )
    falls = claim.worded(parts[1], "at the same time", "at another time", "at about the same time or not")
    return Result(
        parts=parts,
        says=(
            f"After {two[0]['steps'][-1]:,} steps the loss on a repetition is {claim.show(claim.mean(second['2']), unit)} with two layers and "
            f"{claim.show(claim.mean(second['1']))} with one (a guess: {measurements['guess']:.2f}). With two layers the largest induction score is halfway at step "
            f"{claim.show(claim.mean([head for head, _ in when]))} and the loss at step {claim.show(claim.mean([loss for _, loss in when]))}. "
            f"Without that head the loss is {claim.show(claim.mean([row[0] for row in without]))}, without the least of its layer "
            f"{claim.show(claim.mean([row[1] for row in without]))}."
        ),
        seeds=len(two),
        headline=(
            f"Two layers {copy} ({np.mean(second['2']):.2f} against {np.mean(second['1']):.2f} nats a letter, a guess: {measurements['guess']:.2f}); their loss falls {falls} as "
            f"the score of the best head rises (steps {np.mean([loss for _, loss in when]):.0f} and {np.mean([head for head, _ in when]):.0f}), and differs by "
            f"{claim.show(lost, 'nats')} if that head is removed instead of another."
        ),
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Loss on the repetition and induction score by step, a line per seed."""
    loss, score = figure.subplots(1, 2)
    for place, (label, found) in enumerate(measurements["curves"].items()):
        for number, curve in enumerate(found):
            name = "" if number else f"{label} layer{'s' * (label != '1')}"
            options = {"color": claim.COLOURS[place], "alpha": 0.6, "label": name}
            loss.plot(curve["steps"], curve["second"], **options)
            score.plot(curve["steps"], curve["score"], **options)
    loss.axhline(measurements["guess"], color="#7a7a7a", linestyle="--", linewidth=1)
    loss.set(xlabel="step", ylabel="loss on the repetition, nats a letter (dashed: a guess)", ylim=(0, None))
    score.set(xlabel="step", ylabel="largest induction score of a head", ylim=(0, 1))
    score.legend(loc="upper left")


if __name__ == "__main__":
    claim.run()
