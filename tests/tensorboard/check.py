"""Writes metrics with Arges and reads its event files with TensorBoard's own reader."""

import math
import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return events


def main() -> None:
    example, run = sys.argv[1], Path(sys.argv[2])
    subprocess.run([example, run], check=True)
    events = read(run)
    tags = events.Tags()["scalars"]
    assert tags == ["train/loss", "train/lr", "eval/loss", "eval/zero"], tags
    # 20 steps, of which the run was resumed after the 12th and went on to the 15th.
    loss = events.Scalars("train/loss")
    assert [event.step for event in loss] == list(range(1, 16)), loss
    assert all(event.value == (10.0 if event.step <= 12 else 20.0) + event.step for event in loss), loss
    assert [event.wall_time for event in loss] == [1.7e9 + event.step / 4 for event in loss], loss
    assert all(math.isnan(event.value) for event in events.Scalars("train/lr"))
    evaluated = [(event.step, event.value) for event in events.Scalars("eval/loss")]
    assert evaluated == [(5, 0.5), (10, 0.5), (15, 0.5)], evaluated
    assert [event.value for event in events.Scalars("eval/zero")] == [0.0] * 3
    assert events.file_version == 2.0, events.file_version
    print(f"{len(list(run.glob('events.out.tfevents.*')))} files, {len(tags)} tags: as written")


main()
