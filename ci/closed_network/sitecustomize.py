"""With this folder on PYTHONPATH no Python process reaches the network.

Python runs this file before anything else, in a process and in all that it starts. Who connects to another machine, or
asks for its address, is refused and noted in the file that $NETWORK_TRIED names.
"""

import os
import socket
import sys

HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}


def _refuse(event: str, args: tuple) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        if not isinstance(address, tuple) or address[0] in HERE:  # a path is a socket of this machine
            return
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = args[0]
        if address in HERE:
            return
    else:
        return
    with open(os.environ["NETWORK_TRIED"], "a", encoding="utf-8") as stream:
        stream.write(f"{event} {address} by {sys.argv}\n")
    raise OSError(f"the network is closed: {event} {address}")


sys.addaudithook(_refuse)
