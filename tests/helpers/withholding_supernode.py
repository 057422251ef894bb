"""A SuperNode that announces its replies, and stalls before it uploads their arrays.

It stalls for as many seconds as the environment's UPLOAD_PAUSE, or for ever.
"""

import math
import os
import sys
import time

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

push = start_client_internal.push_object_contents_from_iterable
PAUSE = float(os.environ.get("UPLOAD_PAUSE", "inf"))


def push_arrays_late(object_contents, push_object_fn, **settings):
    def late():
        for object_id, content in object_contents:
            if content.startswith(b"ArrayChunk"):
                if math.inf == PAUSE:
                    continue
                time.sleep(PAUSE)
            yield object_id, content

    push(late(), push_object_fn, **settings)


if __name__ == "__main__":
    start_client_internal.push_object_contents_from_iterable = push_arrays_late
    sys.exit(flower_supernode())
