"""With this folder on PYTHONPATH no Python process reaches the network.

Python runs this file before anything else, in a process and in all that it starts. Who connects to another machine, or
asks for its address, is refused and noted in the file that $NETWORK_TRIED names.
"""

import contextlib
import os
import socket
import sys

HOST = socket.gethostname().partition(".")[0]


def _refuse(event: str, args: tuple) -> None:
    if event in ("socket.connect", "socket.sendto"):
        if not isinstance(args[1], tuple):  # a path: a socket of this machine
            return
        address = args[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = args[0]
    else:
        return
    address = address.decode() if isinstance(address, bytes) else address
    if address in (None, "", "localhost", "0.0.0.0", "::") or address.partition(".")[0] == HOST or _is_ours(address):
        return
    with open(os.environ["NETWORK_TRIED"], "a", encoding="utf-8") as stream:
        stream.write(f"{event} {address} by {sys.argv}\n")
    raise OSError(f"the network is closed: {event} {address}")


def _is_ours(address: str) -> bool:
    """Whether a numeric address is one of this machine's: only to these can a socket be bound."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, address)
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((address, 0))
            return True
    return False


sys.addaudithook(_refuse)
