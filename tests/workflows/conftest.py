"""Runs whose chosen answers can be edited, and servers of their pages."""

import threading

import pytest

from report.conftest import RunMaker
from spr.core.local_server import LocalServer, json_only
from spr.runs.reviews import ReviewFile
from spr.workflows.review import ReviewSession

# In an image of 100 × 80 px, in thousandths: the boxes (20, 20, 40, 40) and (50, 20, 70, 40) of the made runs.
CHOSEN = "a cup [200, 250, 400, 500] and a second cup [500, 250, 700, 500]"
REJECTED = "a cup [200, 250, 400, 450] and a dog [0, 750, 100, 875]"


def made_run(folder, pairs, **changes):
    maker = RunMaker(folder, pairs)
    for k in range(pairs):
        maker.change("pairs", k, chosen=CHOSEN, rejected=REJECTED)
    for k, values in changes.items():
        maker.change("pairs", int(k[1:]), **values)
    return maker


class Served:
    """The page of a run, served by a thread of this process."""

    def __init__(self, run, reviewer=None, **options):
        self.run = run
        self.file = ReviewFile(run)
        self.session = ReviewSession(run, self.file, reviewer)
        self.server = LocalServer(json_only(self.session.answer), **options)
        self.address = self.server.address
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self):
        self.server.shutdown()
        self._thread.join(10)
        self.server.server_close()
        self.file.__exit__()


@pytest.fixture
def serve():
    opened = []

    def start(run, reviewer=None, **options):
        opened.append(Served(run, reviewer, **options))
        return opened[-1]

    yield start
    for served in opened:
        if served._thread.is_alive():
            served.stop()


@pytest.fixture
def make_reviewed(tmp_path):
    return lambda pairs=3, **changes: made_run(tmp_path / "made", pairs, **changes)
