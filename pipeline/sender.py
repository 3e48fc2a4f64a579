"""Delivers the record of a run to MLflow, beside the work that is recorded."""

import sys
from threading import Event, Thread

from pipeline.mlflow_store import deliver, open_store, store_errors, tracking_uri, trouble
from pipeline.run_record import Record

FLUSH_EVERY_S = 10.0
"""How often points are kept on the disk, and the store is given what is new."""
FIRST_AFTER_S = 2.0
"""How long a run's first delivery waits, unless something is to be sent."""
LONGEST_PAUSE_S = 300.0
"""A store that fails is asked at least this often."""
LAST_WAIT_S = 60.0
"""How long the end of a run waits for a store that answers."""
LAST_TRY_S = 10.0
"""How long it waits for one that did not at the last attempt."""


class Sender:
    """The thread that delivers a record: soon, when woken, and every ``FLUSH_EVERY_S``.

    A store that fails is asked less and less often.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._uri = tracking_uri()
        self._answers = True
        self._said_trouble = self._said_answer = False
        self._wake, self._ending = Event(), Event()
        # a daemon: a call that hangs must not keep the process
        self._thread = Thread(target=self._send_until_end, name="mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something is to be sent. Trouble with the store is waited out nevertheless."""
        self._wake.set()

    def finish(self) -> bool:
        """Send the rest; whether the thread has stopped, with or without success.

        Waits ``LAST_WAIT_S`` at most, or ``LAST_TRY_S`` if the store did not answer when last
        asked; a store that fails now is not asked again.
        """
        wait_s = LAST_WAIT_S if self._answers else LAST_TRY_S
        self._ending.set()
        self._wake.set()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _send_until_end(self) -> None:
        # not at once: the imports below take seconds of the interpreter, which the first step needs
        self._wake.wait(FIRST_AFTER_S)
        troubles = store_errors()
        client = None
        pause_s = FLUSH_EVERY_S
        while True:
            self._wake.clear()  # before the question: finish() sets the two the other way round
            last = self._ending.is_set()
            try:
                client = client or open_store(self._uri)
                deliver(self._record, client)
            except troubles as error:
                self._say_trouble(error)
                if self._ending.is_set():
                    return
                self._ending.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._say_answer()
                pause_s = FLUSH_EVERY_S
                if last:
                    return
                self._wake.wait(FLUSH_EVERY_S)

    def _say_trouble(self, error: Exception) -> None:
        self._answers = False
        if not self._said_trouble:
            self._said_trouble = True
            sys.stderr.write(f"warning: work goes on without MLflow: {trouble(error)}\n")

    def _say_answer(self) -> None:
        if not self._answers and not self._said_answer:
            self._said_answer = True
            sys.stderr.write("the MLflow store answers again and has all that was kept for it\n")
        self._answers = True
