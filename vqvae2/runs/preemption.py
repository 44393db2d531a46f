"""Being stopped from outside: signals, the wall clock, and asking SLURM to run the job again."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import lightning as L
import torch
import torch.distributed as dist

from vqvae2 import distributed

RESUMABLE = 75  # exit status, EX_TEMPFAIL of sysexits.h: not finished, the same command goes on
INTERRUPTED = 130  # as shells have it for Ctrl-C: what starts a job again after 75 should not after that
SAME_SIGNAL_S = 2.0  # launchers pass on what their process group has had already
SAME_CTRL_C_S = 0.2  # `timeout -s INT` sends it to its child and to the group; people are slower
_NAMES = {1: "its time limit (trainer.max_time)", 2: "SIGTERM", 3: "SIGUSR1", 4: "Ctrl-C"}
_CODES = {signal.SIGTERM: 2, signal.SIGUSR1: 3, signal.SIGINT: 4}


class Stopped(BaseException):
    """A run was stopped from outside and can go on. Like KeyboardInterrupt, no error of what it interrupts.

    Args:
        message: for the user.
        status: the process's exit status.
    """

    def __init__(self, message: str, status: int = RESUMABLE) -> None:
        super().__init__(message)
        self.status = status


class StopRequest:
    """Whether this run should stop: after SIGTERM, SIGUSR1 (SLURM's `--signal`), Ctrl-C, or when time is up.

    A second signal ends the process at once, unless it comes so soon that it is the first one passed on.

    Args:
        max_time_s: seconds from now, of this start, not of those before it; None for no limit.

    Attributes:
        leaves: end at the first signal, wherever the program is: where nothing is written halfway, or the
            same command completes what a killed one has begun. Otherwise the ranks ask what is `agreed`.
    """

    def __init__(self, max_time_s: float | None = None) -> None:
        self.leaves = True
        self._deadline = None if max_time_s is None else time.monotonic() + max_time_s
        self._code = 0
        self._signalled_at = 0.0
        self._group: dist.ProcessGroup | None = None

    def limit(self, max_time_s: float) -> None:
        """As `max_time_s`."""
        self._deadline = time.monotonic() + max_time_s

    def take_over(self) -> None:
        """Takes the signals over, in the main thread; Lightning gives them back at the end of a run."""
        for signum in _CODES:
            signal.signal(signum, self._on_signal)

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Within, the signals are taken over."""
        before = {signum: signal.getsignal(signum) for signum in _CODES}
        self.take_over()
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def listen(self, timeout: timedelta | None = None) -> None:
        """From now on a signal waits for `agreed`.

        The ranks agree through a group of their own on the processors: through that of the devices, each
        step would wait for the one before it to be computed.

        Args:
            timeout: how long a rank waits for another; None is torch's.
        """
        if self._group is None and distributed.world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        self.leaves = False
        self.take_over()

    def agreed(self, *, want: bool = False) -> tuple[int, bool]:
        """What the ranks agree on, all at the same place of the program: a code, 0 for going on, and whether
        rank 0 says `want`, as only its clock counts."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        code = self._code or int(late)
        if distributed.world_size() == 1:
            return code, want
        flags = torch.tensor([code, int(want and distributed.rank() == 0)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        code, want = flags.tolist()
        return code, bool(want)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if self._code:
            same_s = SAME_CTRL_C_S if signum == signal.SIGINT else SAME_SIGNAL_S
            if time.monotonic() - self._signalled_at > same_s:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        self._code, self._signalled_at = _CODES[signum], time.monotonic()
        if self.leaves:
            raise stopped(self._code, saved="finished files are kept")
        if signum == signal.SIGINT and distributed.rank() == 0:  # print may be what it interrupts
            os.write(2, b"\nCtrl-C: this batch is finished and saved; another Ctrl-C ends at once.\n")


class LeaveOnSignal(L.Callback):
    """For jobs other than a fit: goes before Lightning's own handlers, as predictions take no notice of them.

    Args:
        request: which leaves.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.request.take_over()

    on_test_start = on_validation_start = on_predict_start

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, Stopped) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # to the ranks that this one has started


def stopped(code: int, *, saved: str) -> Stopped:
    """What ends the run, on every rank. Under SLURM, rank 0 first has the job run again after SIGUSR1.

    SIGTERM does not: SLURM sends it when it runs the job again by itself, and when a user cancels it.

    Args:
        code: of `StopRequest.agreed`.
        saved: what the run goes on from, for the message.
    """
    message = f"stopped by {_NAMES[code]}; {saved}. The same command goes on from there"
    job = slurm_job(os.environ)
    if code == _CODES[signal.SIGUSR1] and job is not None and distributed.rank() == 0:
        message += f"; {requeue(job)}"
    return Stopped(f"{message}.", INTERRUPTED if code == _CODES[signal.SIGINT] else RESUMABLE)


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """The job as `scontrol requeue` wants it named, None outside SLURM."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def requeue(job: str) -> str:
    """Asks SLURM to run a job again, and says what came of it."""
    if shutil.which("scontrol") is None:
        return f"job {job} is not queued again: there is no scontrol here"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=15, check=False
        )
    except subprocess.TimeoutExpired:
        return f"job {job} may not be queued again: scontrol did not answer within 15 s"
    if done.returncode:
        return f"job {job} is not queued again: {' '.join(done.stderr.split())}"
    return f"SLURM job {job} is queued again"


def restarted(environment: Mapping[str, str]) -> bool:
    """Whether SLURM or torchrun has started this command again by itself."""
    counts = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return any(int(environment.get(name) or 0) for name in counts)
