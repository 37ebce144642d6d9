"""The numbers of log.jsonl as event files, for TensorBoard: `tensorboard --logdir runs`.

No other module imports tensorboard, which is optional: `pip install tensorboard`."""

from pathlib import Path


def writer(run, epoch):
    """A function that takes an entry of log.jsonl and writes each of its numbers. TensorBoard drops what an
    earlier process wrote of `epoch` and later ones. The files are in RUN/private, since their names hold that
    of this machine."""
    from torch.utils.tensorboard import SummaryWriter

    events = SummaryWriter(Path(run, "private"), purge_step=epoch)

    def write(entry):
        for name in entry.keys() - {"epoch"}:
            events.add_scalar(name, entry[name], entry["epoch"])
        events.flush()

    return write
