"""Train one run on the device.

Shapes: B instructions, M candidates of a step (real and synthetic), D width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from research.many_folders.data.candidates import CandidateSampler, represent
from research.many_folders.data.folders import Folder
from research.many_folders.data.scenes import PROSE, SceneSampler, gathered
from research.many_folders.loss import Memory, bce, contrast, regret
from research.many_folders.model import FusedModel

Ints = NDArray[np.int64]
EVERYDAY = "everyday"  # the folder without outcomes: prompts that hardly any model fails
SCENE, KEEP = "scene", "keep"
OLD = ("mmlu_pro_cot", "helm_mmlu", "llmrouter9", "zeroeval")
WITHOUT_OUTCOMES = (EVERYDAY, PROSE)
EVERYDAY_LOW, EVERYDAY_SLOPE = 0.9, 0.09
NEAR = 12.5  # factor of cosines before a softmax over tasks
WARM_UP, LEAST_RATE = 20, 0.05


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run.

    held_out: folders that training does not see. begin: "shipped", "base" or the name of a run.
    most, least: training rows of one folder in an epoch. real, synthetic: candidates in a step.
    extreme: share of the synthetic candidates that always fail or succeed in some subjects.
    task_sets: share of the steps whose test is not the official one. counts: whether tests of few
    and many questions are drawn. across, within, regret: weights of losses besides cross-entropy.
    distil, match, memory: weights of the losses on the null row. offsets: whether each folder's
    candidates have offsets that no figure explains. reworded: share of the instructions shown in
    another form. everyday: prompts of research/many_folders/data/everyday.py in an epoch. scenes:
    steps of research/many_folders/data/scenes.py for each other step. inside: whether the match of
    research/many_folders/match.py is a part of the logit. keep: steps on texts without outcomes
    that hold the first weights' logits, for each other step. keep_old: share of the first weights'
    probabilities in the targets of the folders that they were trained on. frozen: whether the
    backbone stays as it is.
    """

    name: str
    held_out: tuple[str, ...] = ()
    begin: str = "shipped"
    epochs: float = 2.0
    most: int = 2500
    least: int = 600
    batch: int = 16
    rate: float = 2e-4
    connector_rate: float = 1e-4
    real: int = 40
    synthetic: int = 24
    extreme: float = 0.0
    task_sets: float = 0.0
    counts: bool = False
    across: float = 0.25
    within: float = 0.5
    regret: float = 0.0
    distil: float = 0.0
    match: float = 0.0
    memory: float = 0.0
    offsets: bool = False
    reworded: float = 0.5
    everyday: int = 0
    scenes: float = 0.0
    inside: bool = False
    keep: float = 0.0
    keep_old: float = 0.0
    frozen: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Start:
    """shift, scale: (C,) of representations. calibration: scale, offset of margins. center: (E,)
    of keyword embeddings."""

    shift: Tensor
    scale: Tensor
    calibration: tuple[float, float]
    center: Tensor


def schedule(
    config: RunConfig, folders: Mapping[str, Folder], random: np.random.Generator
) -> list[tuple[str, Ints]]:
    """(folder, rows) of every step."""
    steps: list[tuple[str, Ints]] = []
    orders = {n: random.permutation(f.rows(0)) for n, f in folders.items()}
    for epoch in range(int(np.ceil(config.epochs))):
        share = min(1.0, config.epochs - epoch)
        work: list[tuple[str, Ints]] = []
        for name, folder in folders.items():
            if (
                name in config.held_out
                or name == PROSE
                or (name == EVERYDAY and not config.everyday)
            ):
                continue
            order = orders[name]
            count = config.everyday if name == EVERYDAY else min(len(order), config.most)
            count = round(max(count, config.least if name != EVERYDAY else 0) * share)
            rows = order.take(np.arange(epoch * count, (epoch + 1) * count), mode="wrap")
            work += [(name, b) for b in folder.in_batches(rows, config.batch, random)]
        scenes, keeps = (round(x * len(work)) for x in (config.scenes, config.keep))
        work += [(SCENE, np.zeros(config.batch, np.int64))] * scenes
        work += [(KEEP, np.zeros(config.batch, np.int64))] * keeps
        steps += [work[i] for i in random.permutation(len(work))]
    return steps


class Run:
    """The state of a run."""

    def __init__(
        self,
        config: RunConfig,
        model: FusedModel,
        folders: Mapping[str, Folder],
        start: Start,
        teacher: FusedModel,
    ) -> None:
        self.teacher = teacher
        self.config, self.model, self.folders, self.start = config, model, folders, start
        self.device = start.shift.device
        self.random = np.random.default_rng(config.seed)
        torch.manual_seed(config.seed)
        self.sampler = CandidateSampler(
            config.seed, self.device, config.synthetic, config.extreme, config.counts
        )
        width = model.readout.shape[0]
        trained = [n for n in folders if n not in config.held_out and n not in WITHOUT_OUTCOMES]
        self.trained = trained
        texts = [*trained, PROSE] if PROSE in folders else trained
        self.scenes = SceneSampler(folders, texts, config.seed) if config.scenes else None
        self.offsets = {
            n: nn.Parameter(torch.zeros(len(folders[n].scores) + 1, device=self.device))
            for n in trained
        }
        self.memories = {
            n: Memory.empty(width, len(folders[n].scores), self.device) for n in trained
        }
        connector = list(model.connector.parameters())
        kept = ("connector", "match")
        matrices = [p for n, p in model.named_parameters() if not n.startswith(kept)]
        self.groups = (
            (connector, 0.0 if config.frozen else config.connector_rate),
            (matrices, 0.0 if config.frozen else config.rate),
            ([*model.match.parameters(), *self.offsets.values()], 1e-3),
        )
        self.optimizer = torch.optim.AdamW(
            [{"params": p, "lr": r} for p, r in self.groups],
            weight_decay=0.01,
            fused=True,
        )

    def representation(self, figures: Tensor, counts: Tensor | None, test: Any) -> Tensor:
        """(M, C), standardised, of figures as `test` shows them."""
        c = represent(figures, counts, test.means, test.vectors)
        return (c - self.start.shift) / self.start.scale

    def scene(self, size: int) -> tuple[Tensor, Tensor]:
        """The same of a step without outcomes: cross-entropy of the true probabilities, and which
        task each instruction is of."""
        assert self.scenes is not None
        shown = self.scenes.scene(size, self.config.real)
        unknown = torch.full((len(shown.vectors),), torch.nan, device=self.device)
        c = represent(shown.figures, None, unknown, shown.vectors)
        tokens, lengths = gathered(self.folders, shown.asked, 1 + len(c))
        h = self.model(tokens, lengths, (c - self.start.shift) / self.start.scale)
        scale, offset = self.start.calibration
        null = h[:, 0]
        logits = scale * self.model.margins(h[:, 1:]) + offset
        if self.config.inside:
            logits = logits + self.model.match(null, shown.vectors, shown.figures)
        cross = bce(logits, shown.truth)
        near = self.model.match.embedding(null) @ self.model.match.whole(shown.vectors).T * NEAR
        return cross + self.config.match * cross_entropy(near, shown.own), cross.detach()

    def keep(self, size: int) -> tuple[Tensor, Tensor]:
        """The same of a step that holds the first weights' logits on texts without outcomes."""
        random, folder = self.random, self.folders[PROSE]
        shown = self.folders[self.trained[random.integers(len(self.trained))]]
        test = shown.tests[0]
        assert test.figures is not None
        figures = test.figures[random.permutation(len(test.figures))[: self.config.real]]
        c = self.representation(figures, None, test)
        rows = random.choice(folder.rows(0), size)
        tokens, lengths = folder.batch(rows, np.zeros(size, np.int64), 1 + len(c))
        scale, offset = self.start.calibration
        h = self.model(tokens, lengths, c)
        with torch.no_grad():
            wanted = self.teacher(tokens, lengths, c)[:, 1:]
            wanted = (scale * self.teacher.margins(wanted) + offset).sigmoid()
        cross = bce(scale * self.model.margins(h[:, 1:]) + offset, wanted)
        at = torch.from_numpy(rows).to(self.device)
        return cross + self._text(folder, test, h[:, 0], at, 0, False), cross.detach()

    def step(self, name: str, rows: Ints) -> tuple[Tensor, Tensor]:
        """(loss, cross-entropy of the real candidates)."""
        config, random = self.config, self.random
        if name == SCENE:
            return self.scene(len(rows))
        if name == KEEP:
            return self.keep(len(rows))
        everyday = name == EVERYDAY
        pool = self.folders[self.trained[random.integers(len(self.trained))]] if everyday else None
        folder = pool or self.folders[name]
        total = len(folder.scores)
        chosen = np.sort(random.permutation(total)[: config.real])
        real = torch.from_numpy(chosen).to(self.device)
        draws = random.random(6).tolist()
        others = len(folder.tests) > 1 and draws[5] < config.task_sets
        number = int(random.integers(1, len(folder.tests))) if others else 0
        test = folder.tests[number]
        own = rows if pool is None else random.choice(folder.rows(0), len(rows))
        at = torch.from_numpy(own).to(self.device)
        drawn = self.sampler.draw(test, folder.scores, real, at, draws)
        c = represent(
            drawn.figures, drawn.counts if drawn.counted else None, drawn.means, test.vectors
        )
        truth = drawn.outcomes
        if everyday:
            truth = (EVERYDAY_LOW + EVERYDAY_SLOPE * c[:, -1]).expand(len(rows), -1)
        asked = self.folders[name]
        form = (random.random(len(rows)) < config.reworded) & (asked.lengths[1, rows] > 0)
        tokens, lengths = asked.batch(rows, form.astype(np.int64), 1 + len(c))
        c = (c - self.start.shift) / self.start.scale
        h = self.model(tokens, lengths, c)
        scale, offset = self.start.calibration
        logits = scale * self.model.margins(h[:, 1:]) + offset
        null = h[:, 0]
        if config.keep_old and name in OLD:
            with torch.no_grad():
                before = self.teacher(tokens, lengths, c)[:, 1:]
                before = (scale * self.teacher.margins(before) + offset).sigmoid()
            target = (1 - config.keep_old) * truth + config.keep_old * before
        else:
            target = truth
        if config.inside:
            logits = logits + self.model.match(null, test.vectors, drawn.figures)
        count = len(real)
        plain = logits[:, :count]
        loss = torch.zeros((), device=self.device)
        if config.offsets and not everyday:
            b = self.offsets[name]
            shift = torch.cat([b[real] + b[-1], b[-1].expand(config.synthetic)])
            logits = logits + shift
            loss = loss + 0.02 * b.square().sum()
        loss = loss + bce(logits, target)
        if not everyday:
            loss = loss + config.within * contrast(logits.T, truth.T)
            loss = loss + config.across * contrast(logits, truth)
        if config.regret and not everyday:
            price = torch.rand(len(c), device=self.device) * float(random.random() * 0.3)
            loss = loss + config.regret * regret(logits, truth, price.expand_as(logits))
        if config.distil or config.match:
            loss = loss + self._text(asked, test, null, at, number, everyday)
        if config.memory and not everyday:
            loss = loss + config.memory * self._recall(name, null, plain, truth, real)
        return loss, bce(plain.detach(), truth[:, :count])

    def _text(
        self, folder: Folder, test: Any, null: Tensor, at: Tensor, number: int, everyday: bool
    ) -> Tensor:
        """The null row tells the text encoder's embedding of the instruction, and with it which
        task of the test it belongs to."""
        if everyday:
            return torch.zeros((), device=self.device)
        found = self.model.match.embedding(null)
        wanted = normalize(folder.vectors[at], dim=1)
        loss = self.config.distil * (1 - cosine_similarity(found, wanted, dim=1)).mean()
        if self.config.match and number:
            group = test.group[at]
            near = found @ self.model.match.whole(test.vectors).T * NEAR
            known = group < near.shape[1]
            label = torch.where(known, group, 0)
            value = cross_entropy(near, label, reduction="none")
            loss = loss + self.config.match * (value * known).mean()
        return loss

    def _recall(
        self, name: str, null: Tensor, plain: Tensor, truth: Tensor, real: Tensor
    ) -> Tensor:
        memory = self.memories[name]
        z, y = plain.detach(), truth[:, : len(real)]
        loss = torch.zeros((), device=self.device)
        if memory.filled >= 48:
            common, relative = memory.recalled(null, real)
            loss = bce(z + 0.7 * (common + relative), y)
        memory.remember(null.detach(), z, y, real)
        return loss

    def train(self, until: float) -> dict[str, Any]:
        """Every step, or those that end before `until` (time.time())."""
        work = schedule(self.config, self.folders, self.random)
        began, kept, seen = time.time(), [], 0
        rates = [g["lr"] for g in self.optimizer.param_groups]
        stopped = False
        for number, (name, rows) in enumerate(work):
            decay = 0.5 * (1 + np.cos(np.pi * number / len(work)))
            factor = (LEAST_RATE + (1 - LEAST_RATE) * decay) * min(1, (number + 1) / WARM_UP)
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss, cross = self.step(name, rows)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for parameters, _ in self.groups[:2]:
                nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            seen += len(rows)
            if number % 25 == 0:
                kept.append((name[:6], loss.detach(), cross))
            if number % 100 == 0 and time.time() > until:
                stopped = True
                break
        curve = [(n, round(float(a), 4), round(float(b), 4)) for n, a, b in kept]
        return {
            "steps": number + 1 if work else 0,
            "instructions": seen,
            "seconds": round(time.time() - began, 2),
            "stopped": stopped,
            "curve": curve,
        }
