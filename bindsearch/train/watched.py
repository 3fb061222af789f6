"""What a person sees of a stage that is trained, and how the first Ctrl-C ends it: after the step in hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from bindsearch.embed.run import interruptible
from bindsearch.train.checkpoint import steps_done
from bindsearch.train.loop import Stage
from bindsearch.train.processes import world_size


def first_signal(interrupted: threading.Event) -> AbstractContextManager[None]:
    """Let the first signal end the run between two steps.

    Of several processes each stops at once: one that waits for the others' step would wait for ever.
    """
    return nullcontext() if world_size() > 1 else interruptible(interrupted, "step")


@contextmanager
def watched(stage: Stage, progress: bool) -> Iterator[None]:
    """Show how far a stage is on stderr: a bar that begins where the checkpoint stands, and the latest loss."""
    from tqdm import tqdm

    steps, done = stage.config.steps, steps_done(stage.path)
    with tqdm(total=steps, initial=done, desc="train", unit="step", disable=None if progress else True) as bar:

        def watch(loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update()

        stage.watch = watch
        yield
