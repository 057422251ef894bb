"""A SuperNode that announces its replies, and never uploads their arrays."""

import sys

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

push = start_client_internal.push_object_contents_from_iterable


def push_all_but_arrays(object_contents, push_object_fn, **settings):
    kept = (
        (object_id, content)
        for object_id, content in object_contents
        if not content.startswith(b"ArrayChunk")
    )
    push(kept, push_object_fn, **settings)


if __name__ == "__main__":
    start_client_internal.push_object_contents_from_iterable = push_all_but_arrays
    sys.exit(flower_supernode())
