"""Before the language model: prompts are read, records begun, and tokens chosen for layer 0."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vtprune.methods import ImageTokens, PruningMethod, Selection
from vtprune.models import refuse
from vtprune.models.annotation import token_coverage
from vtprune.models.batch import Prompts, images_per_row, once, view_sizes
from vtprune.models.encode import Encoding
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import CapturedImage, Family
from vtprune.models.packing import pack_left
from vtprune.models.record import SampleRecord, Unreduced
from vtprune.models.run import PruningRun
from vtprune.models.stage import Stage
from vtprune.models.text_tower import TextTower, question_of


class Entry:
    """What a context does with the prompts of one prefill.

    Args:
        parts: of the method, before the language model.
        needs: signals that they read.
    """

    def __init__(
        self,
        family: Family,
        method: PruningMethod,
        run: PruningRun,
        tower: TextTower | None,
        encoding: Encoding,
        parts: list[PruningMethod],
    ) -> None:
        self.family, self.method, self.run, self.tower = family, method, run, tower
        self.encoding, self.parts, self.needs = encoding, parts, encoding.needs

    # -- prompts ----------------------------------------------------------------------------------

    def read(self, ids: Tensor, mask: Tensor | None, encoded: Any) -> Prompts:
        """The prompts of ``ids [B, L]`` and their pictures; the device is asked once.

        Args:
            mask: 2-D, or None.
            encoded: encoder outputs that the forward was given.
        """
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
            raise PruningUnsupported(
                f"only 2-D attention masks of the prompt can be pruned, here {list(ids.shape)}"
            )
        both = torch.stack([ids, torch.ones_like(ids) if mask is None else mask.to(ids)]).cpu()
        valid = both[1].bool()
        codes = self.family.modality_codes(both[0]) * valid
        pictures = self.encoding.pictures(encoded)
        images = images_per_row(pictures, list(self.family.encoders), codes)
        images = [self.family.group(*row) for row in zip(images, both[0], strict=True)]
        return Prompts(both[0], valid, codes, images)

    def name(self, prompts: Prompts, beams: int, helper: bool) -> None:
        """Names, annotations and questions of new prompts, as they were begun.

        Args:
            beams: rows that ``generate`` makes of every sample.
            helper: prompts that the user did not ask; nothing that was begun is theirs.
        """
        rows, prompts.beams = len(prompts.ids), beams
        given = None if helper else self.run.begun()
        if given is None:
            # Without padding, so that a prompt has one name in every batch.
            real = [row[valid] for row, valid in zip(prompts.ids, prompts.valid, strict=True)]
            prompts.names = [hashlib.sha256(r.numpy().tobytes()).hexdigest()[:16] for r in real]
            return
        if len(given.names) * beams != rows:
            raise PruningUnsupported(
                f"{len(given.names)} sample ids for a batch of {rows // beams} prompts"
                + (f" of {beams} beams" if beams > 1 else "")
            )
        prompts.names = [name for name in given.names for _ in range(beams)]
        for what, of in (("foreground", given.foreground), ("questions", given.questions)):
            if of is not None and len(of) != len(given.names):
                raise PruningUnsupported(f"{len(of)} {what} for {len(given.names)} sample ids")
        prompts.foreground, prompts.questions = given.foreground, given.questions

    def new_records(self, prompts: Prompts) -> None:
        """One record a row."""
        asked, depth = self._asked(prompts), len(self.family.layers)
        place = prompts.valid.long().cumsum(1) - 1
        for row, name in enumerate(prompts.names):
            images = prompts.images[row]
            record = SampleRecord(
                sample_id=name,
                prompt_length=int(prompts.valid[row].sum()),
                visual=place[row, prompts.columns[row]],
                n_layers=depth,
                positions=self.method.positions,
                crops=sum(image.layout.n_tiles for image in images),
                grids=tuple((i.layout.n_tiles, *i.layout.patch_grid) for i in images),
                merged=next((i.merged for i in images), ()),
                unreduced=asked[row],
            )
            one = asked[row]
            if one is not None and one.planned != record.grids:
                raise refuse.unprepared(self.method)
            prompts.records.append(record)

    def _asked(self, prompts: Prompts) -> list[Unreduced | None]:
        """Per row, what was asked before the method changed the input; None: it does not."""
        rows, given = len(prompts.ids), self.run._unreduced
        if self.run._input is None or (given is None and not any(prompts.images)):
            return [None] * rows
        if given is None or rows % len(given):
            raise refuse.unprepared(self.method)
        return [one for one in given for _ in range(rows // len(given))]

    # -- choice -----------------------------------------------------------------------------------

    def choose(self, prompts: Prompts, embeds: Tensor) -> tuple[Stage, list[int]]:
        """The stage of layer 0, and how many visual tokens of every row are in it."""
        device, counts = embeds.device, [len(columns) for columns in prompts.columns]
        valid = prompts.valid.to(device)
        whole = torch.arange(valid.shape[1], device=device).expand(len(valid), -1)
        if not self.parts:
            return Stage(0, None, whole, None, valid, not prompts.padded), counts
        started, keep = self.run.clock(), valid.clone()
        rewrites: list[tuple[Tensor, Tensor, Tensor]] = []
        lengths = prompts.valid.sum(1).tolist()
        for row, images in enumerate(prompts.images):
            if not images:
                continue
            columns = prompts.columns[row].to(device)
            picked = self._choose_row(prompts, row, columns, embeds)
            keep[row, columns] = False
            keep[row, columns[picked.indices]] = True
            lengths[row] -= counts[row] - len(picked.indices)
            if picked.features is not None:
                slots = columns[picked.indices]
                rewrites.append((torch.full_like(slots, row), slots, picked.features))
            self._note(prompts, row, picked, counts[row])
            counts[row] = len(picked.indices)
        stage = self._stage(valid, keep, whole, lengths, prompts)
        if rewrites:
            rows, slots, vectors = zip(*rewrites, strict=True)
            stage.rewrite = (torch.cat(rows), torch.cat(slots), torch.cat(vectors))
        seconds = (self.run.clock() - started) / max(1, len(prompts.images))
        for record in prompts.records:
            record.selection_seconds += seconds
        return stage, counts

    def _stage(
        self, valid: Tensor, keep: Tensor, whole: Tensor, lengths: list[int], prompts: Prompts
    ) -> Stage:
        if lengths == prompts.valid.sum(1).tolist():
            return Stage(0, None, whole, None, valid, not prompts.padded)
        order, kept = pack_left(keep, max(lengths))
        return Stage(0, order, order, None, kept, min(lengths) == max(lengths))

    def _choose_row(
        self, prompts: Prompts, row: int, columns: Tensor, embeds: Tensor
    ) -> Selection:
        """Which of a row's visual tokens stay, over all its pictures."""
        question = self._question(prompts, row)
        indices, vectors, offset, merged = [], [], 0, False
        views: list[int] = []
        for number, image in enumerate(prompts.images[row]):
            mine = columns[offset : offset + len(image.layout)]
            tokens = ImageTokens(
                embeds[row, mine],
                image.layout,
                (prompts.names[row], number),
                once(self._signals(prompts, row, number, question)),
                image.pack,
                image.project,
            )
            picked = self.method.keep(tokens)
            indices.append(picked.indices + offset)
            merged = merged or picked.features is not None
            vectors.append((mine, picked))
            views += self._views(image)
            offset += len(image.layout)
        prompts.records[row].views = tuple(views)
        if not merged:
            return Selection(torch.cat(indices))
        rows = [
            embeds[row, mine[one.indices]] if one.features is None else one.features.to(embeds)
            for mine, one in vectors
        ]
        return Selection(torch.cat(indices), torch.cat(rows))

    def _views(self, image: CapturedImage) -> list[int]:
        """Sizes of the graphs that the (first) selection runs on."""
        sizes, first = view_sizes(image), self.parts[0]
        if getattr(first, "scope", "") != "joint":
            return sizes
        everything = getattr(first, "newline", "") == "candidate"
        return [len(image.layout) if everything else sum(sizes)]

    def _note(self, prompts: Prompts, row: int, picked: Selection, count: int) -> None:
        record = prompts.records[row]
        if len(picked.indices) < count:
            alive = torch.zeros(count, dtype=torch.bool, device=picked.indices.device)
            record.stages.append((0, alive.index_fill(0, picked.indices, True)))
        if picked.features is not None:
            record.rewrites[0] = (record.visual.to(picked.indices.device)[picked.indices],
                                  picked.features)  # fmt: skip

    # -- what else is read ------------------------------------------------------------------------

    def _question(self, prompts: Prompts, row: int) -> Tensor | None:
        """The row's question in CLIP's joint space ``[P]``, if the method asks for it."""
        tower, given = self.tower, prompts.questions
        if tower is None or "clip_similarity" not in self.needs:
            return None
        if given is None:
            raise PruningUnsupported(
                f"{self.method.name} reads the question: name it, run.begin(ids, questions=[...])"
            )
        ids = tower.tokens(question_of(given[prompts.sample(row)]))
        patches = sum(i.layout.n_tiles * i.layout.patch_grid[0] * i.layout.patch_grid[1]
                      for i in prompts.images[row])  # fmt: skip
        prompts.records[row].signal_macs = tower.macs(ids.shape[1], patches)
        return tower.text(ids)

    def _signals(
        self, prompts: Prompts, row: int, number: int, question: Tensor | None
    ) -> Mapping[str, Any]:
        """What the encoder offers, and what else was given: an annotation, a question."""
        more: dict[str, Any] = {}
        image, given, tower = prompts.images[row][number], prompts.foreground, self.tower
        if given is not None:
            mask = given[prompts.sample(row)][number]
            more["fg_mask"] = lambda: token_coverage(mask, image.layout)
        if question is not None and tower is not None:
            features = image.signals["vision_features"]

            def similarity() -> Tensor:
                x = features()
                return (tower.patches(x) @ question).to(x.device)

            more["clip_similarity"] = similarity
        return {**image.signals, **more}
