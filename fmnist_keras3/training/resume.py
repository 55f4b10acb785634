"""Going on from a checkpoint: after a stop (resume), and after a divergence (rollback)."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from zlib import crc32

from fmnist_keras3.engines.base import Engine
from fmnist_keras3.ground.errors import Diverged, UserError
from fmnist_keras3.runs import checkpoint, checkpoints, matching, rundir
from fmnist_keras3.runs.checkpoint import Checkpoint
from fmnist_keras3.training.fit import Fit, Position, named

ROLLBACKS = 5  # tries from one checkpoint


def find(run: Path, which: str, engine: Engine) -> Checkpoint:
    """Return the checkpoint to go on from; warns of damaged ones that were passed over.

    Raises UserError where none is sound, or where it does not fit the engine's model.
    """
    expected = matching.describe(engine.export_state())

    def load(path: Path) -> Checkpoint:
        return checkpoint.load(path, lambda arrays: matching.check_matches(arrays, expected))

    folder = run / rundir.CHECKPOINTS
    if checkpoints.is_name(which):
        return load(folder / which)
    found, problems = checkpoint.find(folder, which, load)
    if problems:
        warnings.warn(" ".join(problems) + f" It goes on from {found.path.name}.", stacklevel=3)
    return found


def check_data(fit: Fit, found: Checkpoint) -> None:
    """Raise UserError, naming the field, if seed or data are not what they were."""
    manifest = found.manifest
    now = {"seed": fit.seed, **fit.data_identity()}
    then = {"seed": manifest.get("seed"), **manifest.get("data", {})}
    for name in {**now, **then}:  # what is not named is as it is by default
        if then.get(name) != (value := now.get(name)):
            source = fit.data.source
            which = f" The data is {source.name} from {source.source}." * (name == "sha256")
            raise UserError(
                f"The run was started with {name} {then.get(name)}; it is {value} now, and may not "
                f"change on a resume.{which} Give what it was, or start a new run."
            )


def check_processes(fit: Fit) -> None:
    """Raise UserError, naming the field, unless all processes of the training began alike.

    Each reads its own part of the batches, and updates weights of its own; nothing later tells.
    """
    world = fit.engine.world
    if world.size == 1:
        return
    weights = [crc32(array.tobytes()) for _, array in fit.engine.export_state()]
    fields = {"seed": fit.seed, **fit.data_identity(), "position": fit.position.place}
    fields |= {"epochs": fit.max_epochs, "max_steps": fit.max_steps, "state of the model": weights}
    sums = [crc32(repr(value).encode()) >> 1 for value in fields.values()]
    highest = world.highest(*sums, *(-value for value in sums))  # and the lowest
    ranges = zip(fields, highest, highest[len(sums) :], strict=False)
    if others := [name for name, high, low in ranges if high != -low]:
        raise UserError(
            f"The {world.size} processes differ in {', '.join(others)}. Give each the same command "
            "and the same data, a model with a seed, and a run directory that all of them see."
        )


def restore(fit: Fit, found: Checkpoint) -> None:
    """Bring engine, position, callbacks and loggers to where they were at a checkpoint."""
    manifest = found.manifest
    for name in ("backend", "versions"):
        then, now = manifest.get(name), fit.run.summary.get(name)
        if then != now:
            warnings.warn(
                f"The checkpoint is of {name} {then}, this is {now}: what follows is as good, but "
                "not the same to the bit as without the stop.",
                stacklevel=3,
            )
    expected = fit.engine.export_state()
    arrays = matching.describe(found.state)
    if changed := matching.check_matches(arrays, matching.describe(expected)):
        warnings.warn(f"The optimizer is another one ({changed}); it starts afresh.", stacklevel=3)
    fit.engine.import_state(matching.adopt(found.state, expected))
    try:
        fit.position = Position(**manifest["position"])
        fit.logs = {k: math.nan if v is None else v for k, v in manifest["logs"].items()}
        for name, callback in named(fit.callbacks):
            if state := manifest["callbacks"].get(name):
                callback.load_state_dict(state)
        kept = fit.jsonl.rewind(manifest["metrics"], fit.position.step)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{found.path}: {checkpoint.MANIFEST} was not written by this version ({error!r})."
        ) from error
    fit.notify("on_load_checkpoint", manifest)
    fit.loggers.replay(kept)
    fit.keeper.restored(found.path, fit.position.place)


class Rollback:
    """Goes back to the last good checkpoint when a value is not finite, and around the failure.

    The way there is taken once more step by step, to find the step that fails. It is left out; if
    training fails again before the next checkpoint, the learning rate is halved, too. All of it
    depends on nothing but the checkpoint, so a resumed run does the same.
    """

    def __init__(self, fit: Fit) -> None:
        self.fit, self._from, self._tries = fit, "", 0

    def __call__(self, failure: Diverged) -> None:
        """Bring the fit back; raises ``failure`` again after `ROLLBACKS` tries in vain."""
        fit = self.fit
        found_exactly = failure.step <= fit.single_steps_until
        before = fit.position
        fit.keeper.wait()
        found = find(fit.run.path, "last", fit.engine)
        if found.path.name != self._from:
            self._from, self._tries = found.path.name, 0
        if self._tries == ROLLBACKS:
            failure.add_note(f"Going back to {found.path.name} did not help {ROLLBACKS} times.")
            raise failure
        restore(fit, found)
        if not found_exactly:
            fit.single_steps_until = failure.step
        self._carry_over(before)
        if found_exactly:
            self._tries += 1
            fit.position.skipped.append(failure.step)
            halved = self._tries > 1
            self._scale(0.5 if halved else 1.0)
            warnings.warn(
                f"{failure} Back to step {fit.position.step}; step {failure.step} is left out"
                + f", and the learning rate is {fit.position.lr_scale:g} of what it was." * halved
                + "." * (not halved),
                stacklevel=2,
            )
            fit.log("rollback", fit.position.epoch + 1, failure.step, {"to": fit.position.step})

    def _carry_over(self, before: Position) -> None:
        """Keep what earlier rollbacks to the same checkpoint have learnt."""
        position = self.fit.position
        position.skipped += [step for step in before.skipped if step not in position.skipped]
        self._scale(before.lr_scale / position.lr_scale)

    def _scale(self, factor: float) -> None:
        fit = self.fit
        fit.position.lr_scale *= factor
        if fit.schedule is None:  # the rate is the optimizer's own
            fit.engine.set_learning_rate(fit.engine.learning_rate() * factor)
