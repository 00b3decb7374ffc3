"""Sites that were built, and servers of them."""

import contextlib
import functools
import threading

from export import site


def files_of(folder):
    """The folder of a site that holds all but its index and its service worker."""
    (files,) = folder.glob("v-*")
    return files


@contextlib.contextmanager
def serving(handler, folder):
    """A server of a folder; its address."""
    with site.Server(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
